//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::Outcome;
use crate::shape::{PRESETS, Shape};

/// The element type of every tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
    /// IEEE single
    F32,
}

impl Precision {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name in a safetensors header.
    pub fn header_name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    /// The name in `config.json`.
    pub fn config_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }
}

/// Makes Llama-shaped Hugging Face checkpoints of seeded noise
#[derive(Debug, Parser)]
#[command(name = "make-checkpoint")]
pub struct Options {
    /// Folder to make; with --models above one, the folder of model-1, model-2, ...
    #[arg(long)]
    pub out: PathBuf,
    /// Architecture to imitate: tiny, llama-68m, llama-160m, llama-1b, llama-3b, llama-7b,
    /// llama-8b, llama-13b, llama-70b
    #[arg(long, default_value = "tiny")]
    shape: String,
    /// Hidden size, instead of the shape's
    #[arg(long)]
    hidden: Option<u64>,
    /// Number of layers, instead of the shape's
    #[arg(long)]
    layers: Option<u64>,
    /// Width of the MLP, instead of the shape's
    #[arg(long)]
    intermediate: Option<u64>,
    /// Attention heads, instead of the shape's
    #[arg(long)]
    heads: Option<u64>,
    /// Key and value heads, instead of the shape's
    #[arg(long)]
    kv_heads: Option<u64>,
    /// Vocabulary, instead of the shape's; 258 at least, for the byte-level tokenizer
    #[arg(long)]
    vocab: Option<u64>,
    /// Whether lm_head is the embedding and so is not stored, instead of the shape's
    #[arg(long)]
    tied: Option<bool>,
    /// Take as many layers as fit in this many bytes (such as 20GB or 8GiB), at least one
    #[arg(long, value_parser = parse_bytes, conflicts_with = "layers")]
    size: Option<u64>,
    /// Element type of all tensors
    #[arg(long, value_enum, default_value = "bf16")]
    pub dtype: Precision,
    /// What the noise is drawn from; model K of several takes this plus K - 1
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Make fine-tunes of the model that this seed alone makes
    #[arg(long)]
    pub base_seed: Option<u64>,
    /// How far a fine-tune lies from its base, as a share of the base's spread
    #[arg(long, default_value_t = 0.01, requires = "base_seed")]
    pub noise: f32,
    /// Most bytes of tensors in one shard, such as 5GB
    #[arg(long, value_parser = parse_bytes, default_value = "5GB")]
    pub shard_size: u64,
    /// How many models to make
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub models: u64,
}

impl Options {
    /// The preset with what the command line changes in it.
    pub fn shape(&self) -> Outcome<Shape> {
        let Some(preset) = PRESETS.iter().find(|(name, _)| *name == self.shape) else {
            let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
            return Err(
                format!("no shape {:?}; there are {}", self.shape, names.join(", ")).into(),
            );
        };
        let mut shape = preset.1;
        shape.hidden = self.hidden.unwrap_or(shape.hidden);
        shape.layers = self.layers.unwrap_or(shape.layers);
        shape.intermediate = self.intermediate.unwrap_or(shape.intermediate);
        shape.heads = self.heads.unwrap_or(shape.heads);
        shape.kv_heads = self.kv_heads.unwrap_or(shape.kv_heads);
        shape.vocab = self.vocab.unwrap_or(shape.vocab);
        shape.tied = self.tied.unwrap_or(shape.tied);
        if let Some(size) = self.size {
            shape.layers = shape.layers_within(size, self.dtype);
        }
        shape.check()?;
        Ok(shape)
    }
}

/// `5GB` is 5 · 10⁹, `5GiB` is 5 · 2³⁰, a bare number is bytes.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        unit => {
            return Err(format!(
                "unknown unit {unit:?}; wanted B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"
            ));
        }
    };
    let count: u64 = text[..digits].parse().map_err(|error| format!("{error}"))?;
    count
        .checked_mul(unit)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_or_binary_by_their_unit() {
        assert_eq!(parse_bytes("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_bytes("2 GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("77"), Ok(77));
        assert!(parse_bytes("0").is_err());
        assert!(parse_bytes("GB").is_err());
        assert!(parse_bytes("5 parsecs").is_err());
        assert!(parse_bytes("99999999999TiB").is_err());
    }

    #[test]
    fn the_command_line_overrides_the_shape() {
        let options =
            Options::try_parse_from(["x", "--out", "d", "--shape", "llama-70b", "--layers", "3"])
                .expect("parses");
        let shape = options.shape().expect("known");
        assert_eq!((shape.hidden, shape.layers), (8192, 3));
        let unknown =
            Options::try_parse_from(["x", "--out", "d", "--shape", "llama-71b"]).expect("parses");
        assert!(
            unknown
                .shape()
                .expect_err("unknown")
                .to_string()
                .contains("llama-70b")
        );
    }
}
