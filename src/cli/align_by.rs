//! Flags of `thalweg align` that say by what two models are brought together.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::align::activations::{Options as Activations, Similarity};
use crate::align::straight_through::Options as StraightThrough;
use crate::engine::Options;
use crate::engine::align::{By, Pair};
use crate::error::Result;

/// By what: weights, unless one of these is given.
#[derive(Debug, Args)]
#[command(next_help_heading = "By what is aligned, other than weights")]
pub struct ByArgs {
    /// By what the units do: activations of both models on the same samples, folders or files with a tensor
    /// [samples, units] for each group, called as it is (`activations` writes them for MLPs, VGG and ResNets)
    #[arg(long, num_args = 2, value_names = ["ACTS_A", "ACTS_B"], conflicts_with = "straight_through")]
    pub activations: Option<Vec<PathBuf>>,

    /// What is compared of two units' activations
    #[arg(long, value_enum, value_name = "WHAT", default_value = "uncentred", requires = "activations")]
    pub similarity: SimilarityArg,

    /// By the loss of the midpoint on --data, descended by a straight-through estimator (MLPs, VGG and ResNets)
    #[arg(long, requires = "data")]
    pub straight_through: bool,

    /// The samples for it: a safetensors file with `inputs` [samples, ...] and `labels` [samples]
    #[arg(long, value_name = "FILE", requires = "straight_through")]
    pub data: Option<PathBuf>,

    /// Times that each sample is seen
    #[arg(long, value_name = "N", default_value_t = StraightThrough::default().epochs, requires = "straight_through")]
    pub epochs: usize,

    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = StraightThrough::default().batch, requires = "straight_through",
          value_parser = positive)]
    pub batch: usize,

    /// The learning rate
    #[arg(long, value_name = "RATE", default_value_t = StraightThrough::default().rate, requires = "straight_through",
          value_parser = rate)]
    pub rate: f64,
}

/// `--similarity`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SimilarityArg {
    /// Their inner product, as in the paper
    #[value(alias = "uncentered")]
    Uncentred,
    /// That of the deviations from their means
    #[value(alias = "centered")]
    Centred,
    /// Their correlation
    Correlation,
}

impl ByArgs {
    /// By what `pair` is aligned.
    ///
    /// # Errors
    ///
    /// When activations or data cannot be opened, or there is no forward pass for the models.
    pub fn by(&self, pair: &Pair, seed: u64, signs: bool, run: &Options) -> Result<By> {
        if let Some([reference, model]) = self.activations.as_deref() {
            let similarity = match self.similarity {
                SimilarityArg::Uncentred => Similarity::Uncentred,
                SimilarityArg::Centred => Similarity::Centred,
                SimilarityArg::Correlation => Similarity::Correlation,
            };
            return By::activations(reference, model, Activations { similarity, signs, ..Activations::default() });
        }
        match &self.data {
            Some(data) => {
                let options = StraightThrough { epochs: self.epochs, batch: self.batch, rate: self.rate, seed };
                By::straight_through(pair, data, options, run)
            }
            None => Ok(By::Weights),
        }
    }
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| format!("`{text}` is no whole number above 0"))
}

fn rate(text: &str) -> Result<f64, String> {
    let fits = |rate: &f64| rate.is_finite() && *rate > 0.0;
    text.parse().ok().filter(fits).ok_or_else(|| format!("`{text}` is no number above 0"))
}
