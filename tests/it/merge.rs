//! Whole merges: models on disk in, a sealed checkpoint out, compared with the naive reference.

mod accuracy;
mod containers;
mod exponents;
mod findings;
mod inputs;
mod let_through;
mod methods;
mod nonfinite;
mod numbers;
mod odd;
mod outputs;
mod parameters;
mod same_bytes;
mod schedule;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;
use thalweg::checkpoint::Io;
use thalweg::engine::{self, Merge, Options};
use thalweg::error::Result;
use thalweg::kernel::Kernels;
use thalweg::monitor::{Monitor, Silent};
use thalweg::output::{DiskStorage, Target};
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::recipe::{HubCache, Recipe};
use thalweg::report::Report;

pub use nonfinite::assert_names;
pub use same_bytes::{least_memory, roles};

use crate::support::files::scratch;
use crate::support::reference::files::{read_model, write_model};
use crate::support::reference::{
    Model, Random, Tensor, distance, float::ulp_distance, norm, round_to,
};

/// A folder with models in it, gone when dropped.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// In memory where the system has such a folder: for many small merges.
    pub fn in_memory() -> Self {
        Self(scratch())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a model into the folder `name`.
    pub fn model(&self, name: &str, model: &Model) -> PathBuf {
        write_model(&self.path(name), model, 1);
        self.path(name)
    }

    /// Writes models into folders `m0`, `m1` and so on.
    pub fn models(&self, models: &[Model]) -> Vec<PathBuf> {
        models
            .iter()
            .enumerate()
            .map(|(i, model)| self.model(&format!("m{i}"), model))
            .collect()
    }

    /// Merges, and reads the result back.
    pub fn merged(&self, run: &Run) -> Model {
        let out = tempfile::tempdir_in(self.0.path()).expect("a folder");
        run.merge_to(&out.path().join("out"))
            .expect("a merge that succeeds");
        read_model(&out.path().join("out"))
    }

    /// The error with which a merge ends.
    pub fn refused(&self, run: &Run) -> thalweg::Error {
        let out = tempfile::tempdir_in(self.0.path()).expect("a folder");
        let out = out.path().join("out");
        let error = run.merge_to(&out).expect_err("a merge that is refused");
        let left = [
            "model.safetensors",
            "model.safetensors.index.json",
            "thalweg.json",
        ];
        assert!(
            left.iter().all(|name| !out.join(name).exists()),
            "a refused merge has left a checkpoint"
        );
        error
    }
}

/// A merge, and how it is carried out.
#[derive(Clone)]
pub struct Run {
    pub recipe: Value,
    pub memory: u64,
    pub threads: usize,
    pub block_bytes: Option<u64>,
    pub kernels: Kernels,
    pub io: Io,
    pub commit_bytes: u64,
}

impl Run {
    /// Plenty of memory, and whatever else is usual.
    pub fn new(recipe: Value) -> Self {
        let kernels = Kernels::detect();
        let commit_bytes = engine::COMMIT_BYTES;
        Self {
            recipe,
            memory: 1 << 30,
            threads: 2,
            block_bytes: None,
            kernels,
            io: Io::Map,
            commit_bytes,
        }
    }

    /// A Karcher mean with equal weights.
    pub fn karcher(models: &[PathBuf]) -> Self {
        Self::new(recipe("karcher", models, None))
    }

    /// A Karcher mean.
    pub fn weighted(models: &[PathBuf], weights: &[f64]) -> Self {
        Self::new(recipe("karcher", models, Some(weights)))
    }

    /// With one more key in the recipe.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.recipe[key] = value.into();
        self
    }

    /// By one of the instruction sets that there are.
    pub fn at_level(mut self, number: usize) -> Self {
        let levels = Kernels::available();
        self.kernels = levels[number % levels.len()];
        self
    }

    /// With blocks of one chunk, so that what has several chunks has several blocks too.
    pub fn small_blocks(mut self) -> Self {
        self.block_bytes = Some(1);
        self
    }

    pub fn job(&self) -> Result<Job> {
        let recipe = Recipe::parse(&self.recipe.to_string(), "recipe")?;
        let document = recipe.documents[0].clone();
        let hub = HubCache::at("/nowhere");
        let inputs = document
            .models()
            .into_iter()
            .map(|model| model.locate(&hub))
            .collect::<Result<_>>()?;
        Job::new(document, inputs)
    }

    pub fn plan(&self) -> Result<Plan> {
        let wish = Wish {
            memory: self.memory,
            threads: self.threads,
            block_bytes: self.block_bytes,
        };
        Plan::new(&self.job()?, &wish)
    }

    pub fn merge_to(&self, out: &Path) -> Result<Report> {
        self.merge_watched(out, Arc::new(Silent))
    }

    pub fn merge_watched(&self, out: &Path, monitor: Arc<dyn Monitor>) -> Result<Report> {
        engine::merge(Merge {
            plan: Arc::new(self.plan()?),
            storage: Arc::new(DiskStorage),
            target: Target {
                dir: out.to_owned(),
                overwrite: false,
                restart: false,
            },
            options: Options {
                kernels: self.kernels,
                io: self.io,
                monitor,
                commit_bytes: self.commit_bytes,
                ..Options::default()
            },
            verify: true,
        })
    }
}

/// A recipe for whole models, as a tree.
pub fn recipe(method: &str, models: &[PathBuf], weights: Option<&[f64]>) -> Value {
    let model = |(i, path): (usize, &PathBuf)| match weights {
        Some(weights) => json!({ "model": path, "parameters": { "weight": weights[i] } }),
        None => json!({ "model": path }),
    };
    json!({ "merge_method": method, "models": models.iter().enumerate().map(model).collect::<Vec<_>>() })
}

/// A tensor of one dimension.
pub fn vector(dtype: Dtype, values: &[f64]) -> Tensor {
    Tensor::rounded(dtype, &[values.len()], values)
}

/// A model of one tensor, `w`.
pub fn only(tensor: Tensor) -> Model {
    Model::from([("w".to_owned(), tensor)])
}

/// How random models are related to each other.
#[derive(Debug, Clone, Copy)]
pub enum Kinship {
    /// Not at all.
    Independent,
    /// Every pair of a tensor has about this cosine.
    Cosine(f64),
}

/// One random model a dtype, of tensors with these shapes, named after them.
pub fn random_models(
    random: &mut Random,
    dtypes: &[Dtype],
    shapes: &[&[usize]],
    kinship: Kinship,
) -> Vec<Model> {
    let mut models = vec![Model::new(); dtypes.len()];
    for shape in shapes {
        let len: usize = shape.iter().product();
        let own = match kinship {
            // A single number has no direction aside, so the parts are numbers of one sign.
            Kinship::Cosine(cosine) if len > 1 => {
                let base = random.gaussian(len);
                random.fine_tunes(&base, dtypes.len(), cosine)
            }
            _ => dtypes.iter().map(|_| random.gaussian(len)).collect(),
        };
        for ((model, dtype), values) in models.iter_mut().zip(dtypes).zip(own) {
            model.insert(
                format!("t{shape:?}"),
                Tensor::rounded(*dtype, shape, &values),
            );
        }
    }
    models
}

/// Asserts that `got` is `wanted`, rounded once: 9,999 elements of 10,000 exactly, the others to
/// the next number.
///
/// The solver ends within an angle of 1e-12 of the mean. In F64, and where the inputs cancel so
/// that steps are as small as that, this much of the largest element is allowed; in F64 several
/// times as much, for tensors that cancel whole.
pub fn assert_rounded(got: &Model, wanted: &BTreeMap<String, Vec<f64>>, about: &str) {
    let (mut elements, mut off) = (0, 0u64);
    assert_eq!(got.len(), wanted.len(), "{about}: tensors");
    for (name, wanted) in wanted {
        let tensor = &got[name];
        assert_eq!(
            tensor.values.len(),
            wanted.len(),
            "{about}: elements of {name}"
        );
        if tensor.dtype == Dtype::F64 {
            let error = distance(&tensor.values, wanted) / norm(wanted).max(f64::MIN_POSITIVE);
            assert!(error <= 1e-11, "{about}: {name} is off by {error:e}");
            continue;
        }
        let allowed = 1e-12
            * wanted
                .iter()
                .fold(0.0f64, |largest, value| largest.max(value.abs()));
        for (k, (bits, wanted)) in tensor.bits().into_iter().zip(wanted).enumerate() {
            let ulps = ulp_distance(tensor.dtype, bits, round_to(tensor.dtype, *wanted));
            let value = tensor.values[k];
            let close = ulps <= 1 || (value - wanted).abs() <= allowed;
            assert!(
                close,
                "{about}: element {k} of {name} is {value:e}, wanted {wanted:e}, {ulps} steps off"
            );
            off += u64::from(ulps > 0);
        }
        elements += wanted.len();
    }
    assert!(
        10_000 * off <= u64::try_from(elements).expect("small"),
        "{about}: {off} of {elements} are off"
    );
}

/// Every file below `folder` by its name, with its contents.
pub fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            files.extend(
                files_of(&path)
                    .into_iter()
                    .map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)),
            );
        } else {
            files.insert(name, fs::read(&path).expect("a readable file"));
        }
    }
    files
}

/// Asserts that two models are the same to the bit.
pub fn assert_same(got: &Model, wanted: &Model, about: &str) {
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>(),
        "{about}: tensors"
    );
    for (name, wanted) in wanted {
        let got = &got[name];
        assert_eq!(
            (got.dtype, &got.shape),
            (wanted.dtype, &wanted.shape),
            "{about}: {name}"
        );
        let first = got
            .bytes
            .iter()
            .zip(&wanted.bytes)
            .position(|(a, b)| a != b);
        assert_eq!(first, None, "{about}: first differing byte of {name}");
    }
}
