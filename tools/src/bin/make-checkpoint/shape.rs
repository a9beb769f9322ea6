//! Which tensors a Llama model has: names and shapes as transformers writes them.

use crate::Outcome;
use crate::options::Precision;

/// The sizes that fix a Llama model's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub hidden: u64,
    pub layers: u64,
    pub intermediate: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub vocab: u64,
    pub tied: bool,
}

/// The models one meets, by the sizes in their published configurations.
pub const PRESETS: [(&str, Shape); 9] = [
    ("tiny", preset([64, 2, 176, 4, 2, 320], false)),
    ("llama-68m", preset([768, 2, 3072, 12, 12, 32_000], false)),
    ("llama-160m", preset([768, 12, 3072, 12, 12, 32_000], false)),
    ("llama-1b", preset([2048, 16, 8192, 32, 8, 128_256], true)),
    ("llama-3b", preset([3072, 28, 8192, 24, 8, 128_256], true)),
    (
        "llama-7b",
        preset([4096, 32, 11_008, 32, 32, 32_000], false),
    ),
    (
        "llama-8b",
        preset([4096, 32, 14_336, 32, 8, 128_256], false),
    ),
    (
        "llama-13b",
        preset([5120, 40, 13_824, 40, 40, 32_000], false),
    ),
    (
        "llama-70b",
        preset([8192, 80, 28_672, 64, 8, 128_256], false),
    ),
];

const fn preset(
    [hidden, layers, intermediate, heads, kv_heads, vocab]: [u64; 6],
    tied: bool,
) -> Shape {
    Shape {
        hidden,
        layers,
        intermediate,
        heads,
        kv_heads,
        vocab,
        tied,
    }
}

/// How a tensor's values are spread: a norm's weights lie around one, a matrix's around zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub center: f32,
    pub deviation: f32,
}

/// One tensor of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub dtype: Precision,
    pub spread: Spread,
}

impl Tensor {
    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bytes() as u64
    }
}

const MATRIX: Spread = Spread {
    center: 0.0,
    deviation: 0.02,
};
const NORM: Spread = Spread {
    center: 1.0,
    deviation: 0.05,
};

impl Shape {
    /// Refuses sizes that transformers would not load.
    pub fn check(&self) -> Outcome<()> {
        let Self {
            hidden,
            layers,
            intermediate,
            heads,
            kv_heads,
            vocab,
            ..
        } = *self;
        if [hidden, layers, intermediate, heads, kv_heads].contains(&0) {
            return Err("every size must be at least 1".into());
        }
        if hidden % heads != 0 || !(hidden / heads).is_multiple_of(2) || heads % kv_heads != 0 {
            return Err(format!(
                "hidden {hidden} must be an even multiple of heads {heads}, and heads a multiple of kv-heads {kv_heads}"
            )
            .into());
        }
        if vocab < 258 {
            return Err(
                format!("a byte-level tokenizer needs a vocabulary of 258, got {vocab}").into(),
            );
        }
        if [hidden, layers, intermediate, vocab]
            .iter()
            .any(|&size| size > 1 << 24)
        {
            return Err(format!("no size may be above {}", 1 << 24).into());
        }
        Ok(())
    }

    /// Elements of one attention head.
    pub fn head_dim(&self) -> u64 {
        self.hidden / self.heads
    }

    /// All tensors in the order of the model's state dict.
    pub fn tensors(&self, dtype: Precision) -> Vec<Tensor> {
        let tensor = |name: &str, shape: &[u64], spread| Tensor {
            name: name.into(),
            shape: shape.into(),
            dtype,
            spread,
        };
        let mut tensors = vec![tensor(
            "model.embed_tokens.weight",
            &[self.vocab, self.hidden],
            MATRIX,
        )];
        for layer in 0..self.layers {
            tensors.extend(self.layer().into_iter().map(|(part, shape, spread)| {
                tensor(
                    &format!("model.layers.{layer}.{part}.weight"),
                    &shape,
                    spread,
                )
            }));
        }
        tensors.push(tensor("model.norm.weight", &[self.hidden], NORM));
        if !self.tied {
            tensors.push(tensor("lm_head.weight", &[self.vocab, self.hidden], MATRIX));
        }
        tensors
    }

    /// As many layers as keep the model within `bytes`, at least one.
    pub fn layers_within(&self, bytes: u64, dtype: Precision) -> u64 {
        let total = |layers| {
            Self { layers, ..*self }
                .tensors(dtype)
                .iter()
                .map(Tensor::bytes)
                .sum::<u64>()
        };
        let (fixed, layer) = (total(0), total(1) - total(0));
        (bytes.saturating_sub(fixed) / layer.max(1)).max(1)
    }

    fn layer(&self) -> [(&'static str, Vec<u64>, Spread); 9] {
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let kv = self.head_dim() * self.kv_heads;
        [
            ("self_attn.q_proj", vec![hidden, hidden], MATRIX),
            ("self_attn.k_proj", vec![kv, hidden], MATRIX),
            ("self_attn.v_proj", vec![kv, hidden], MATRIX),
            ("self_attn.o_proj", vec![hidden, hidden], MATRIX),
            ("mlp.gate_proj", vec![intermediate, hidden], MATRIX),
            ("mlp.up_proj", vec![intermediate, hidden], MATRIX),
            ("mlp.down_proj", vec![hidden, intermediate], MATRIX),
            ("input_layernorm", vec![hidden], NORM),
            ("post_attention_layernorm", vec![hidden], NORM),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(name: &str) -> u64 {
        let (_, shape) = PRESETS
            .iter()
            .find(|(preset, _)| *preset == name)
            .expect("a preset");
        shape
            .tensors(Precision::Bf16)
            .iter()
            .map(|tensor| tensor.bytes() / 2)
            .sum()
    }

    #[test]
    fn presets_have_the_published_parameter_counts() {
        assert_eq!(parameters("llama-7b"), 6_738_415_616);
        assert_eq!(parameters("llama-8b"), 8_030_261_248);
        assert_eq!(parameters("llama-70b"), 70_553_706_496);
        assert_eq!(parameters("llama-1b"), 1_235_814_400);
        assert_eq!(parameters("llama-3b"), 3_212_749_824);
    }

    #[test]
    fn every_preset_passes_its_own_check() {
        for (name, shape) in PRESETS {
            shape
                .check()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(
            Shape {
                vocab: 257,
                ..PRESETS[0].1
            }
            .check()
            .is_err()
        );
        assert!(
            Shape {
                heads: 3,
                ..PRESETS[0].1
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn a_size_is_filled_with_whole_layers() {
        let shape = PRESETS[8].1;
        let layers = shape.layers_within(20_000_000_000, Precision::Bf16);
        let bytes = |layers| {
            Shape { layers, ..shape }
                .tensors(Precision::Bf16)
                .iter()
                .map(Tensor::bytes)
                .sum::<u64>()
        };
        assert!(bytes(layers) <= 20_000_000_000 && bytes(layers + 1) > 20_000_000_000);
        assert_eq!(shape.layers_within(1, Precision::Bf16), 1);
    }
}
