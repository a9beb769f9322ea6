//! `--quantised`, of commands that take no recipe.

use clap::{Args, ValueEnum};

use crate::checkpoint::OpenOptions;
use crate::recipe::Quantised;

/// The treatment of quantised weights by commands that take no recipe.
#[derive(Debug, Args)]
pub struct QuantisedArgs {
    /// Policy for quantised weights, which are codes with scales beside them: stop, or take codes
    /// and scales as the numbers that they are stored as
    #[arg(
        long,
        value_enum,
        value_name = "POLICY",
        default_value = "error",
        alias = "quantized"
    )]
    pub quantised: QuantisedArg,
}

impl QuantisedArgs {
    /// The same as an option of the library.
    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            raw_codes: matches!(self.quantised, QuantisedArg::Raw),
            ..OpenOptions::default()
        }
    }

    /// The same as a key of a recipe.
    pub fn key(&self) -> Option<Quantised> {
        matches!(self.quantised, QuantisedArg::Raw).then_some(Quantised::Raw)
    }
}

/// `--quantised`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum QuantisedArg {
    /// Stop
    Error,
    /// Take them as they are
    Raw,
}
