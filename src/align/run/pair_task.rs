//! The alignment of two models: the second is aligned to the first, and its transform is one file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use crate::align::matching::{self, Step, Watch};
use crate::align::{Store, Transformed, Weights, angles};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::linalg::Backend;
use crate::monitor::Phase;
use crate::output::Target;
use crate::symmetry::{Alignment, Symmetries, Transform, TransformFile};

use super::matcher::{MatchResult, Models};
use super::session::Session;
use super::{
    AlignmentReport, Matcher, Pair, Ran, Solving, Task, findings, note, refuse_inputs_folder,
    report_of,
};

/// A pair, and the criterion by which it is aligned.
pub struct PairTask {
    /// The models.
    pub pair: Pair,
    /// The criterion that matches units.
    pub by: Matcher,
    /// The options of matching; the run fills in their memory.
    pub matching: matching::MatchOptions,
}

/// The result of an alignment.
pub struct Aligned {
    /// The transform with its notes, as it was written.
    pub file: TransformFile,
    /// The findings, for people and programs.
    pub report: AlignmentReport,
}

impl Task for PairTask {
    type Step = Step;
    type Found = Aligned;

    fn models(&self) -> Vec<&Checkpoint> {
        vec![&self.pair.reference, &self.pair.model]
    }

    fn symmetries(&self) -> &Arc<Symmetries> {
        &self.pair.symmetries
    }

    fn words(&self) -> String {
        "these models".to_owned()
    }

    /// Counts the transforms that the matcher has found and those that it tries, and the steps,
    /// twice if they are resumed.
    fn held_bytes(&self, _: usize) -> u64 {
        6 * findings::largest_transform_bytes(&self.pair.symmetries)
    }

    fn least_bytes(&self, first: &Store, second: &Arc<Store>) -> u64 {
        self.by
            .least_memory(first, second, &self.pair.symmetries, &self.matching)
    }

    fn set_memory(&mut self, bytes: u64) {
        self.matching.memory = bytes;
    }

    fn identity(&self) -> Result<Value> {
        let mut identity = self.pair.identity(&self.matching);
        self.by.add_to(&mut identity)?;
        Ok(identity)
    }

    fn paths(&self, out: &Path) -> Vec<PathBuf> {
        vec![out.to_owned()]
    }

    fn check_target(&self, target: &Target, _: &Value) -> Result<()> {
        refuse_other_names(&target.dir)?;
        refuse_inputs_folder([&self.pair.reference, &self.pair.model], &target.dir)
    }

    fn solve(&self, solving: &Solving<'_, Step>, backend: Backend) -> Result<Vec<TransformFile>> {
        let &Solving {
            stores,
            earlier,
            session,
            options,
            identity,
        } = solving;
        let (stored, moving) = (&stores[0], &stores[1]);
        let matching = matching::MatchOptions {
            backend,
            ..self.matching.clone()
        };
        let reference = self.reference(Arc::clone(stored));
        let (reference, stored) = (reference.as_ref(), stored.as_ref());
        let models = Models {
            pair: &self.pair,
            reference,
            stored,
            moving,
            options,
        };
        let solved = self.by.solve(&models, &matching, earlier, session)?;
        // The backend is not needed any more.
        drop(matching);
        let cosines = self.cosines(&models, &solved.transform, session)?;
        let MatchResult {
            transform,
            sweeps,
            losses,
        } = solved;
        let symmetries = &self.pair.symmetries;
        let found = session.with_steps(|steps| {
            let mut found = findings::of(
                symmetries,
                &self.matching,
                &transform,
                sweeps,
                steps,
                cosines,
            );
            self.by.add_findings(&mut found, steps, &self.pair, losses);
            found
        });
        let notes = IndexMap::from([
            (
                note::REFERENCE.to_owned(),
                self.pair.reference_print.clone(),
            ),
            (note::IDENTITY.to_owned(), identity.to_string()),
            (
                note::FINDINGS.to_owned(),
                serde_json::to_string(&found).expect("findings are plain data"),
            ),
        ]);
        Ok(vec![TransformFile {
            transform,
            model: self.pair.model_print.clone(),
            notes,
        }])
    }

    fn found(&self, files: Vec<TransformFile>, ran: &Ran) -> Result<Aligned> {
        let Pair {
            reference,
            model,
            symmetries,
            ..
        } = &self.pair;
        let file = files.into_iter().next().expect("a pair has one transform");
        let report = report_of(
            &file,
            ran.out.as_deref(),
            [reference, model],
            symmetries,
            ran,
        )?;
        Ok(Aligned { file, report })
    }
}

impl PairTask {
    /// Returns the reference's weights as they are compared.
    fn reference(&self, store: Arc<Store>) -> Arc<dyn Weights> {
        let Some(symmetries) = &self.pair.folded else {
            return store;
        };
        let (symmetries, transform) = (
            Arc::clone(symmetries),
            Arc::new(Transform::identity(symmetries)),
        );
        Arc::new(Transformed::new(
            store,
            Alignment {
                symmetries,
                transform,
            },
        ))
    }

    /// Computes the cosines of all tensors before and after.
    fn cosines(
        &self,
        models: &Models<'_>,
        transform: &Transform,
        session: &Session<'_, Step>,
    ) -> Result<[Vec<Option<f64>>; 2]> {
        let &Models {
            reference, options, ..
        } = models;
        let (symmetries, names) = (&self.pair.symmetries, self.pair.acted_on());
        let moves = !transform.is_identity(symmetries);
        let shapes = names.iter().map(|name| reference.shape(name));
        let elements = shapes.map(|shape| shape.unwrap_or_default().iter().product::<u64>());
        // Both models are read, as f32, once for each transform.
        let bytes = 2 * 4 * (1 + u64::from(moves)) * elements.sum::<u64>();
        options.monitor.phase(Phase::Measuring, bytes);
        let before = self.cosines_under(models, Transform::identity(symmetries), session)?;
        if !moves {
            return Ok([before.clone(), before]);
        }
        let after = self.cosines_under(models, transform.clone(), session)?;
        Ok([before, after])
    }

    /// Computes the cosines of all tensors under one transform.
    fn cosines_under(
        &self,
        models: &Models<'_>,
        transform: Transform,
        session: &Session<'_, Step>,
    ) -> Result<Vec<Option<f64>>> {
        let (reference, options) = (models.reference, models.options);
        let model = self.under(models.moving, transform);
        let names = self.pair.acted_on();
        angles::cosines(reference, &model, &names, options.kernels, &|elements| {
            options.monitor.advance(2 * 4 * elements);
            session.go_on()
        })
    }

    /// Returns the model under `transform`; its norms are folded if the pair's are.
    fn under(&self, moving: &Arc<Store>, transform: Transform) -> Transformed {
        let symmetries = Arc::clone(&self.pair.symmetries);
        Transformed::new(
            Arc::clone(moving),
            Alignment {
                symmetries,
                transform: Arc::new(transform),
            },
        )
    }
}

/// Refuses names other than `X.safetensors`: a transform is read by its name, like a checkpoint.
fn refuse_other_names(out: &Path) -> Result<()> {
    if out.extension().is_some_and(|end| end == "safetensors") && !out.is_dir() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        "cannot write to file",
        out.display(),
        "wanted the name of one file, X.safetensors",
    ))
}
