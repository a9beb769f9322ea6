//! Losses and accuracies along paths from one model to another.
//!
//! A point at λ is a merge of both with weights 1 - λ and λ, computed by the engine, so its numbers
//! are those that `merge` writes. The barrier of a curve is the most by which its loss rises above
//! the straight line between its ends (Frankle et al., "Linear mode connectivity and the lottery
//! ticket hypothesis", 2020).

mod csv;
mod svg;

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use crate::align::network::check_finite;
use crate::checkpoint::Io;
use crate::data::DataSet;
use crate::dtype::Dtype;
use crate::engine::merge_in_memory;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Kernels};
use crate::likeness::Waived;
use crate::net::{Network, Parameters, evaluate};
use crate::plan::memory::Wish;
use crate::plan::rename::RuleOfInput;
use crate::plan::{Job, Plan};
use crate::recipe::{Document, Quantised, Recipe, Rename};
use crate::symmetry::Alignment;

pub use csv::csv;
pub use svg::svg;

/// The most points of a curve.
pub const MOST_POINTS: usize = 1001;

/// The way in which two models are merged along the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The weighted mean of their numbers.
    Linear,
    /// The Karcher mean of every tensor.
    Karcher,
}

impl Way {
    /// Returns the merge method's name.
    pub fn method(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Karcher => "karcher",
        }
    }
}

/// The two ends of all curves.
#[derive(Debug, Clone)]
pub struct Ends {
    /// The models' names as the user gave them: at λ = 0, and at λ = 1.
    pub names: [String; 2],
    /// The models' paths.
    pub paths: [PathBuf; 2],
    /// Differences between the models that are allowed.
    pub allowed: Waived,
    /// The alignment of the second model to the first.
    pub alignment: Option<Alignment>,
    /// The policy for quantised weights.
    pub quantised: Option<Quantised>,
    /// The rules by which tensors are renamed.
    pub rename: Vec<RuleOfInput>,
}

impl Ends {
    /// Returns the merge at `lambda`, with the second model aligned or as it is.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] when a name cannot stand in a recipe.
    pub fn job(&self, way: Way, aligned: bool, lambda: f64) -> Result<Job> {
        let weights = [1.0 - lambda, lambda];
        let models = self.names.iter().zip(weights);
        let models: Vec<_> = models
            .map(|(name, weight)| json!({ "model": name, "parameters": { "weight": weight } }))
            .collect();
        let recipe = json!({ "merge_method": way.method(), "models": models });
        let recipe = Recipe::parse(&recipe.to_string(), "interpolation")?;
        let mut document = recipe.documents[0].clone();
        document.own.any_vocabulary = Some(self.allowed.vocabulary);
        document.own.any_config = Some(self.allowed.config);
        let mut job = Job::new(document, self.paths.to_vec())?;
        job.document.own.quantised = self.quantised;
        job.document.own.rename = self.rules(&job.document);
        if aligned {
            job.alignments = vec![None, self.alignment.clone()];
        }
        Ok(job)
    }

    /// Returns the rules of renaming for the models of a recipe.
    fn rules(&self, document: &Document) -> Vec<Rename> {
        let models = document.models();
        let rules = self.rename.iter().map(|(rule, input)| Rename {
            model: input.and_then(|input| models.get(input).copied().cloned()),
            ..rule.clone()
        });
        rules.collect()
    }
}

/// Returns the weights of the second model at `points` points, evenly spaced from 0 to 1.
///
/// # Errors
///
/// [`Kind::Usage`] for less than two points or more than [`MOST_POINTS`].
pub fn lambdas(points: usize) -> Result<Vec<f64>> {
    if !(2..=MOST_POINTS).contains(&points) {
        let cause = format!("wanted 2 to {MOST_POINTS}, got {points}");
        return Err(Error::new(
            Kind::Usage,
            "cannot interpolate",
            "points",
            cause,
        ));
    }
    let last = (points - 1) as f64;
    Ok((0..points).map(|point| point as f64 / last).collect())
}

/// A place on the path, and the loss and accuracy of the model there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// The weight of the second model.
    pub lambda: f64,
    /// The mean cross-entropy, in nats.
    pub loss: f64,
    /// The share of samples that are classified correctly.
    pub accuracy: f64,
}

/// All points of one way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// The curve's name.
    pub name: String,
    /// The curve's points, in the order of λ.
    pub points: Vec<Point>,
}

impl Curve {
    /// Returns the most by which the loss rises above the straight line between the ends; never
    /// below zero.
    pub fn barrier(&self) -> f64 {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return 0.0;
        };
        let line = |lambda: f64| (1.0 - lambda) * first.loss + lambda * last.loss;
        let rises = self
            .points
            .iter()
            .map(|point| point.loss - line(point.lambda));
        rises.fold(0.0, f64::max)
    }

    /// Returns the point nearest to the middle.
    pub fn middle(&self) -> Option<&Point> {
        self.points
            .iter()
            .min_by(|a, b| (a.lambda - 0.5).abs().total_cmp(&(b.lambda - 0.5).abs()))
    }
}

/// The network, data and limits with which points are computed.
pub struct Measure<'a> {
    /// The network that the models are weights of.
    pub network: &'a Network,
    /// The data set for loss and accuracy.
    pub data: &'a DataSet,
    /// Memory and threads of the merges.
    pub wish: Wish,
    /// Bytes for values while a point is evaluated.
    pub memory: u64,
    /// The kernels.
    pub kernels: Kernels,
    /// The way of reading files.
    pub io: Io,
    /// Called before every few batches; an error from it ends the work.
    pub go_on: &'a (dyn Fn() -> Result<()> + Sync),
}

impl Measure<'_> {
    /// Computes the point at `lambda`, on the threads of the current pool.
    ///
    /// # Errors
    ///
    /// Passes on the errors of merging and evaluating.
    pub fn point(&self, ends: &Ends, way: Way, aligned: bool, lambda: f64) -> Result<Point> {
        let plan = Plan::new(&ends.job(way, aligned, lambda)?, &self.wish)?;
        let parameters = self.merged(&plan)?;
        let score = evaluate(
            self.network,
            &parameters,
            self.data,
            self.memory,
            self.go_on,
        )?;
        Ok(Point {
            lambda,
            loss: score.loss,
            accuracy: score.accuracy,
        })
    }

    /// Merges, and returns the tensors that the network computes with.
    fn merged(&self, plan: &Plan) -> Result<Parameters> {
        let mut tensors: HashMap<String, Vec<f32>> = HashMap::new();
        merge_in_memory(plan, self.kernels, self.io, &mut |tensor, bytes| {
            if self.network.parameters().contains_key(tensor.name.as_str()) {
                let mut numbers = vec![0.0_f32; bytes.len() / tensor.dtype.bytes()];
                let elements = Elements {
                    dtype: tensor.dtype,
                    bytes,
                };
                self.kernels
                    .convert(elements, Dtype::F32, bytemuck::cast_slice_mut(&mut numbers));
                check_finite(&tensor.name, &numbers)?;
                tensors.insert(tensor.name.to_string(), numbers);
            }
            Ok(())
        })?;
        Parameters::read(self.network, |name, into| match tensors.get(name) {
            Some(numbers) if numbers.len() == into.len() => {
                into.copy_from_slice(numbers);
                Ok(())
            }
            _ => {
                let cause = "the merge has no such tensor, or one of another shape";
                Err(Error::new(
                    Kind::Mismatch,
                    "cannot compute the network",
                    name.escape_debug(),
                    cause,
                ))
            }
        })
    }
}
