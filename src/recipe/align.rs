//! The key `align`: the alignment of models before they are merged.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::write::entry;

/// The alignment of models before they are merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Align {
    /// The source of the transforms.
    pub from: AlignFrom,
    /// The symmetry spec: the name of a built-in one, or a file; found by config and tensor names
    /// when `None`.
    pub spec: Option<String>,
    /// True if models are aligned although their tokenizers differ.
    pub any_vocabulary: bool,
    /// True if all are matched to the mean of all, false if each is matched to the base or the
    /// first one.
    pub together: bool,
}

/// Weight of each tensor in the objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cost {
    /// The same for all.
    #[default]
    Normalised,
    /// Its norm.
    Raw,
}

/// Treatment of the units of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// They stay in place.
    #[default]
    Fixed,
    /// They are reordered.
    Permute,
    /// They are mapped by an orthogonal matrix.
    Orthogonal,
}

/// Settings of matching by weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightMatching {
    /// Weight of each tensor.
    pub cost: Cost,
    /// Treatment of the residual stream.
    pub residual: Residual,
    /// True if signs and rotations are looked for too.
    pub signs: bool,
    /// Seed for the order in which groups are solved.
    pub seed: u64,
    /// Maximum number of sweeps over all groups.
    pub sweeps: usize,
}

impl Default for WeightMatching {
    fn default() -> Self {
        Self {
            cost: Cost::Normalised,
            residual: Residual::Fixed,
            signs: true,
            seed: 0,
            sweeps: 100,
        }
    }
}

/// The source of the transforms of a merge.
#[derive(Debug, Clone, PartialEq)]
pub enum AlignFrom {
    /// All models are matched to the base, or to the first one, by their weights.
    Weights(WeightMatching),
    /// From these files, each for the model that it was made for.
    Files(Vec<String>),
    /// From these files, each with the document's name of its model.
    FilesOf(Vec<(String, String)>),
}

impl Align {
    /// Aligns by weights, in the usual way.
    pub fn weights() -> Self {
        Self {
            from: AlignFrom::Weights(WeightMatching::default()),
            spec: None,
            any_vocabulary: false,
            together: false,
        }
    }

    /// Aligns by these files.
    pub fn files(files: Vec<String>) -> Self {
        Self {
            from: AlignFrom::Files(files),
            spec: None,
            any_vocabulary: false,
            together: false,
        }
    }
}

/// The names of the ways to weigh tensors.
pub(super) const COSTS: &[(&str, Cost)] = &[("normalised", Cost::Normalised), ("raw", Cost::Raw)];
/// The names of the treatments of the residual stream.
pub(super) const RESIDUALS: &[(&str, Residual)] = &[
    ("fixed", Residual::Fixed),
    ("permute", Residual::Permute),
    ("orthogonal", Residual::Orthogonal),
];

/// The names of the references that models are matched to; true for the mean of all.
pub(super) const REFERENCES: &[(&str, bool)] = &[("base", false), ("mean", true)];

/// Returns the name of a choice.
fn name_of<T: Copy + PartialEq>(names: &[(&'static str, T)], choice: T) -> &'static str {
    names
        .iter()
        .find(|(_, known)| *known == choice)
        .map_or("", |(name, _)| name)
}

/// Writes all settings, so that they read back as they are.
impl Serialize for Align {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.from {
            AlignFrom::Weights(options) => {
                map.serialize_entry("method", "weights")?;
                map.serialize_entry("cost", name_of(COSTS, options.cost))?;
                map.serialize_entry("residual", name_of(RESIDUALS, options.residual))?;
                map.serialize_entry("signs", &options.signs)?;
                map.serialize_entry("seed", &options.seed)?;
                map.serialize_entry("max_sweeps", &options.sweeps)?;
                map.serialize_entry("reference", if self.together { "mean" } else { "base" })?;
            }
            AlignFrom::Files(files) => map.serialize_entry("files", files)?,
            AlignFrom::FilesOf(files) => {
                let files: serde_json::Map<_, _> = files
                    .iter()
                    .map(|(model, file)| (model.clone(), file.as_str().into()))
                    .collect();
                map.serialize_entry("files", &files)?;
            }
        }
        entry(&mut map, "spec", self.spec.as_ref())?;
        entry(
            &mut map,
            "any_vocabulary",
            self.any_vocabulary.then_some(true),
        )?;
        map.end()
    }
}
