//! Two models that can be aligned: one architecture, the same tensors and shapes, the same tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::align::matching::{self, Residual};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::likeness::{Waived, meanings, vocabularies};
use crate::symmetry::{Element, OrthogonalMap, Spec, Symmetries, Transform, fingerprint};

/// The version of the matchers. It is raised when the same models and options lead to another
/// transform, so that no run continues another version's steps.
pub const ALIGNMENT_VERSION: u32 = 1;

/// The most tensors that a refusal names.
const NAMED: usize = 3;

/// The first words of a refusal.
const WHAT: &str = "cannot align";

/// A model and the reference that it is aligned to; only headers are read.
pub struct Pair {
    /// The model that stays.
    pub reference: Checkpoint,
    /// The model that is aligned to it.
    pub model: Checkpoint,
    /// The symmetries of both; those of the model, where norms are folded.
    pub symmetries: Arc<Symmetries>,
    /// The symmetries of the reference, where norms are folded.
    pub folded: Option<Arc<Symmetries>>,
    /// The map under which the model's residual stream is held.
    pub map: Option<OrthogonalMap>,
    /// The fingerprint of the reference.
    pub reference_print: String,
    /// The fingerprint of the model.
    pub model_print: String,
    /// Warnings about differences between the models.
    pub warnings: Vec<String>,
}

impl Pair {
    /// Checks that `model` can be aligned to `reference` by `spec`, or by the built-in spec for
    /// their kind, and that their tensors mean the same, except for the `allowed` differences.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] when both are the same files; [`Kind::Mismatch`] when no spec fits, or when
    /// tensors, shapes, types, configs or tokens differ; the error names the first difference.
    pub fn new(
        reference: Checkpoint,
        model: Checkpoint,
        spec: Option<&Spec>,
        allowed: Waived,
    ) -> Result<Self> {
        refuse_same(&reference, &model)?;
        let symmetries = Symmetries::of(&reference, spec)?;
        same_shapes(&reference, &model)?;
        let other = Symmetries::of(&model, spec)?;
        if other.spec != symmetries.spec {
            let cause = format!(
                "{} is a {}, this one a {}",
                shown(&reference),
                symmetries.spec,
                other.spec
            );
            return Err(Error::new(Kind::Mismatch, WHAT, shown(&model), cause));
        }
        if other != symmetries {
            let cause = format!(
                "config.json says other sizes of its groups than that of {}",
                shown(&reference)
            );
            return Err(Error::new(Kind::Mismatch, WHAT, shown(&model), cause)
                .with_hint("compare the numbers of heads, experts and dimensions in both"));
        }
        [&reference, &model]
            .into_iter()
            .try_for_each(|model| all_floats(model, &symmetries))?;
        let mut warnings = meanings(WHAT, &reference, &model, allowed)?;
        warnings.extend(vocabularies(WHAT, &reference, &model, allowed)?);
        let (reference_print, model_print) =
            (fingerprint::of(&reference)?, fingerprint::of(&model)?);
        let symmetries = Arc::new(symmetries);
        Ok(Self {
            symmetries,
            folded: None,
            map: None,
            reference,
            model,
            reference_print,
            model_print,
            warnings,
        })
    }

    /// Prepares the pair for the treatment of its residual stream: norms are folded if the stream
    /// is mapped.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when the norms of these models cannot be folded, [`Kind::NonFinite`] when
    /// they are not finite.
    pub fn ready_for(self, residual: Residual) -> Result<Self> {
        match residual {
            Residual::Fixed | Residual::Permute => Ok(self),
            Residual::Orthogonal | Residual::Map => self.with_norms_folded(),
        }
    }

    /// Holds the model's residual stream under the map in the file `path`.
    ///
    /// # Errors
    ///
    /// As [`Pair::ready_for`]; [`Kind::Input`] when the file does not hold an orthogonal map of
    /// this size.
    pub fn held_under(self, path: &Path) -> Result<Self> {
        let pair = self.with_norms_folded()?;
        let residual = pair.symmetries.groups.iter().find(|group| group.residual);
        let units = residual.map_or(0, |group| group.units);
        Ok(Self {
            map: Some(OrthogonalMap::read(path, units)?),
            ..pair
        })
    }

    fn with_norms_folded(self) -> Result<Self> {
        if self.folded.is_some() {
            return Ok(self);
        }
        let [ours, theirs] =
            [&self.reference, &self.model].map(|model| self.symmetries.folded(model));
        Ok(Self {
            folded: Some(Arc::new(ours?)),
            symmetries: Arc::new(theirs?),
            ..self
        })
    }

    /// Returns the transform from which matching starts: the identity, or the model's map.
    ///
    /// # Errors
    ///
    /// A map that was read for this pair causes none.
    pub fn start(&self) -> Result<Transform> {
        let start = Transform::identity(&self.symmetries);
        let residual = self
            .symmetries
            .groups
            .iter()
            .position(|group| group.residual);
        match (residual, &self.map) {
            (Some(residual), Some(map)) => start.with(
                &self.symmetries,
                residual,
                Element {
                    map: Some(map.clone()),
                    ..Element::default()
                },
            ),
            _ => Ok(start),
        }
    }

    /// Returns the identity of a run: everything that determines its result.
    pub fn identity(&self, options: &matching::MatchOptions) -> Value {
        let mut identity = json!({
            "alignment": ALIGNMENT_VERSION,
            "reference": self.reference_print,
            "model": self.model_print,
            "spec": spec_identity(&self.symmetries),
            "options": options,
        });
        if let Some(map) = &self.map {
            let mut hasher = blake3::Hasher::new();
            map.elements()
                .iter()
                .for_each(|number| _ = hasher.update(&number.to_le_bytes()));
            identity["map"] = hasher.finalize().to_hex().as_str().into();
        }
        identity
    }

    /// Lists the tensors on which some group acts.
    pub fn acted_on(&self) -> Vec<&str> {
        acted_on(&self.symmetries).collect()
    }
}

/// Returns the spec's name, and a hash of the symmetries that it gives these models.
pub fn spec_identity(symmetries: &Symmetries) -> Value {
    let mut hasher = blake3::Hasher::new();
    serde_json::to_writer(&mut hasher, symmetries).expect("symmetries are plain data");
    json!({ "name": symmetries.spec, "digest": hasher.finalize().to_hex().as_str() })
}

/// Lists the tensors on which some group acts.
pub fn acted_on(symmetries: &Symmetries) -> impl Iterator<Item = &str> {
    let tensors = symmetries.tensors.iter();
    tensors
        .filter(|(_, tensor)| tensor.is_acted_on())
        .map(|(name, _)| name.as_str())
}

fn shown(model: &Checkpoint) -> String {
    model.root().display().to_string()
}

fn refuse_same(reference: &Checkpoint, model: &Checkpoint) -> Result<()> {
    if resolved_files(reference).is_some_and(|files| Some(files) == resolved_files(model)) {
        let cause = format!("it is the same model as {}", shown(reference));
        return Err(
            Error::new(Kind::Usage, WHAT, shown(model), cause).with_hint(
                "name two models: the one that stays, then the one that is brought near to it",
            ),
        );
    }
    Ok(())
}

/// Returns the paths of a model's files without links.
fn resolved_files(model: &Checkpoint) -> Option<Vec<PathBuf>> {
    let files = model.files().iter();
    files.map(|file| file.path.canonicalize().ok()).collect()
}

/// Checks that both models have the same tensors with the same dimensions.
fn same_shapes(reference: &Checkpoint, model: &Checkpoint) -> Result<()> {
    let (ours, theirs) = (reference.tensors(), model.tensors());
    let mut differing = Vec::new();
    for (name, entry) in ours {
        match theirs.get(name) {
            None => differing.push(format!("it lacks `{}`", name.escape_debug())),
            Some(other) if other.shape != entry.shape => {
                let (wanted, got) = (&entry.shape, &other.shape);
                differing.push(format!(
                    "`{}` is {got:?}, wanted {wanted:?}",
                    name.escape_debug()
                ));
            }
            Some(_) => {}
        }
    }
    let more = theirs.keys().filter(|name| !ours.contains_key(*name));
    differing.extend(
        more.map(|name| format!("it has `{}`, which the other lacks", name.escape_debug())),
    );
    if differing.is_empty() {
        return Ok(());
    }
    let cause = format!(
        "its tensors are not those of {}: {}",
        shown(reference),
        first(&differing)
    );
    Err(Error::new(Kind::Mismatch, WHAT, shown(model), cause).with_hint(
        "models that are aligned have one architecture, one size and one vocabulary; cut or fill up what differs first",
    ))
}

fn all_floats(model: &Checkpoint, symmetries: &Symmetries) -> Result<()> {
    let odd: Vec<String> = acted_on(symmetries)
        .filter_map(|name| Some((name, model.tensors().get(name)?.dtype)))
        .filter(|(_, dtype)| !dtype.is_mergeable())
        .map(|(name, dtype)| format!("`{}` is {dtype}", name.escape_debug()))
        .collect();
    if odd.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Mismatch,
        WHAT,
        shown(model),
        format!("wanted floats, {}", first(&odd)),
    )
    .with_hint("align models before they are quantised"))
}

fn first(sentences: &[String]) -> String {
    let named = sentences
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    match sentences.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}
