//! Flags of `thalweg align` for the criterion that matches units.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::align::activations::{ActivationOptions, Similarity};
use crate::align::run::{Matcher, Pair};
use crate::align::straight_through::MidpointOptions;
use crate::engine::Options;
use crate::error::Result;

use super::args;

/// The criterion that matches units: weights, unless one of these is given.
#[derive(Debug, Args)]
#[command(next_help_heading = "Criteria other than weights")]
pub struct MatcherArgs {
    /// Match units by their activations on the same samples: for each model a folder or file with a
    /// tensor [samples, units] for each group, named as the group is (`thalweg activations` writes
    /// them for MLPs, VGG and ResNets)
    #[arg(long, num_args = 2, value_names = ["ACTS_A", "ACTS_B"], conflicts_with = "straight_through",
          value_parser = args::path())]
    pub activations: Option<Vec<PathBuf>>,

    /// With --activations: how the activations of two units are compared
    #[arg(
        long,
        value_enum,
        value_name = "MEASURE",
        default_value = "uncentred",
        requires = "activations"
    )]
    pub similarity: SimilarityArg,

    /// Match units by the loss of the midpoint on --data, with a straight-through estimator (MLPs,
    /// VGG and ResNets)
    #[arg(long, requires = "data")]
    pub straight_through: bool,

    /// With --straight-through: samples, a safetensors file with `inputs` [samples, ...] and
    /// `labels` [samples]
    #[arg(long, value_name = "FILE", requires = "straight_through", value_parser = args::path())]
    pub data: Option<PathBuf>,

    /// With --straight-through: passes over the samples
    #[arg(long, value_name = "N", default_value_t = MidpointOptions::default().epochs, requires = "straight_through",
          allow_negative_numbers = true, value_parser = args::whole::<usize>)]
    pub epochs: usize,

    /// With --straight-through: samples in one step
    #[arg(long, value_name = "N", default_value_t = MidpointOptions::default().batch, requires = "straight_through",
          value_parser = positive, allow_negative_numbers = true)]
    pub batch: usize,

    /// With --straight-through: learning rate
    #[arg(long, value_name = "RATE", default_value_t = MidpointOptions::default().rate, requires = "straight_through",
          value_parser = rate, allow_negative_numbers = true)]
    pub rate: f64,
}

/// `--similarity`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SimilarityArg {
    /// Inner product, as in the paper
    #[value(alias = "uncentered")]
    Uncentred,
    /// Inner product of their deviations from their means
    #[value(alias = "centered")]
    Centred,
    /// Correlation
    Correlation,
}

impl MatcherArgs {
    /// Returns the criterion by which `pair` is aligned.
    ///
    /// # Errors
    ///
    /// Fails if activations or data cannot be opened, or there is no forward pass for the models.
    pub fn by(&self, pair: &Pair, seed: u64, signs: bool, run: &Options) -> Result<Matcher> {
        if let Some([reference, model]) = self.activations.as_deref() {
            let similarity = match self.similarity {
                SimilarityArg::Uncentred => Similarity::Uncentred,
                SimilarityArg::Centred => Similarity::Centred,
                SimilarityArg::Correlation => Similarity::Correlation,
            };
            return Matcher::activations(
                reference,
                model,
                ActivationOptions {
                    similarity,
                    signs,
                    ..ActivationOptions::default()
                },
            );
        }
        match &self.data {
            Some(data) => {
                let options = MidpointOptions {
                    epochs: self.epochs,
                    batch: self.batch,
                    rate: self.rate,
                    seed,
                };
                Matcher::straight_through(pair, data, options, run)
            }
            None => Ok(Matcher::Weights),
        }
    }
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "wanted a whole number above 0".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let fits = |rate: &f64| rate.is_finite() && *rate > 0.0;
    text.parse()
        .ok()
        .filter(fits)
        .ok_or_else(|| "wanted a number above 0".to_owned())
}
