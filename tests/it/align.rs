//! Symmetries of networks, and models transformed by them.

pub mod applying;
mod command;
mod folding;
mod function;
mod many;
mod mapped;
mod matching;
mod opening;
mod orthogonal;
pub mod planted;
mod refusals;
mod renamed;
mod resuming;
mod specs;
mod transform;

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use thalweg::checkpoint::Checkpoint;
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::report::Report;
use thalweg::symmetry::{Alignment, Spec, Symmetries, Transform, TransformFile, fingerprint};

use crate::support::forward::Net;
use crate::support::whole::carry_out;

/// A network on disk, and its symmetries.
pub struct Stored {
    pub dir: TempDir,
    pub symmetries: Arc<Symmetries>,
}

impl Stored {
    /// Writes `net` to the folder `model`.
    pub fn new(net: &Net, spec: Option<&Spec>) -> Self {
        let dir = TempDir::new().expect("a folder");
        net.write(&dir.path().join("model"));
        let symmetries = symmetries(&dir.path().join("model"), spec).expect("a spec that fits");
        Self {
            dir,
            symmetries: Arc::new(symmetries),
        }
    }

    /// The same with norms folded into what reads them.
    pub fn folded(self) -> thalweg::Result<Self> {
        let symmetries = self
            .symmetries
            .folded(&Checkpoint::open(&self.dir.path().join("model"))?)?;
        Ok(Self {
            symmetries: Arc::new(symmetries),
            ..self
        })
    }

    /// Writes a random transform of the model in `folder` to `perms.safetensors`.
    pub fn write_random_transform(&self, folder: &str) {
        let model = Checkpoint::open(&self.dir.path().join(folder))
            .and_then(|model| fingerprint::of(&model));
        let transform = Transform::random(&self.symmetries, 7);
        let file = TransformFile {
            transform,
            model: model.expect("read"),
            notes: Default::default(),
        };
        file.write(&self.dir.path().join("perms.safetensors"), &self.symmetries)
            .expect("written");
    }

    pub fn alignment(&self, transform: Transform) -> Alignment {
        Alignment {
            symmetries: Arc::clone(&self.symmetries),
            transform: Arc::new(transform),
        }
    }

    /// Writes folder `from` transformed to folder `to`.
    pub fn apply(&self, from: &str, transform: Transform, to: &str, wish: &Wish) -> Report {
        let alignment = self.alignment(transform);
        let job = Job::of_one(self.dir.path().join(from), Some(alignment)).expect("a job");
        carry_out(
            Plan::new(&job, wish).expect("a plan"),
            &self.dir.path().join(to),
        )
        .expect("applied")
    }
}

pub fn symmetries(folder: &Path, spec: Option<&Spec>) -> thalweg::Result<Symmetries> {
    Symmetries::of(&Checkpoint::open(folder)?, spec)
}
