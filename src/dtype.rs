//! Element types: their names in files, their sizes, and the ones that a merge can average.

use std::fmt;

/// The type of a tensor's elements, by its safetensors name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "each variant is the safetensors dtype of the same name"
)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    C64,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F6E2M3,
    F6E3M2,
    F4,
}

impl Dtype {
    /// All dtypes.
    pub const ALL: [Self; 22] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
        Self::C64,
        Self::F8E8M0,
        Self::F8E4M3Fnuz,
        Self::F8E5M2Fnuz,
        Self::F6E2M3,
        Self::F6E3M2,
        Self::F4,
    ];

    /// The dtypes whose elements can be averaged; all others are carried unchanged.
    pub const MERGEABLE: [Self; 6] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8E4M3,
        Self::F8E5M2,
    ];

    /// Tells if a merge averages elements of this type.
    pub fn is_mergeable(self) -> bool {
        Self::MERGEABLE.contains(&self)
    }

    /// Tells if elements of this type are whole numbers or booleans.
    pub fn is_integer(self) -> bool {
        use Dtype::{Bool, I8, I16, I32, I64, U8, U16, U32, U64};
        matches!(self, I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 | Bool)
    }

    /// Bits of one element; below eight for the packed types.
    pub fn bits(self) -> u64 {
        match self {
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 64,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 16,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::F4 => 4,
            _ => 8,
        }
    }

    /// Bytes of one element of a type whose elements are whole bytes; packed types count as one.
    pub fn bytes(self) -> usize {
        match self.bits() {
            64 => 8,
            32 => 4,
            16 => 2,
            _ => 1,
        }
    }

    /// The name in a safetensors header, such as `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::C64 => "C64",
            Self::F8E8M0 => "F8_E8M0",
            Self::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Self::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Self::F6E2M3 => "F6_E2M3",
            Self::F6E3M2 => "F6_E3M2",
            Self::F4 => "F4",
        }
    }

    /// The name in a Hugging Face `config.json` and in torch, such as `bfloat16`; only for the
    /// mergeable types.
    pub fn torch_name(self) -> Option<&'static str> {
        Some(match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F8E4M3 => "float8_e4m3fn",
            Self::F8E5M2 => "float8_e5m2",
            _ => return None,
        })
    }

    /// Tells if torch computes in this type by default when a config names it. It cannot compute in
    /// types of 8 bits: it widens weights of such a type when it loads them.
    pub fn is_torch_default(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// The type with this safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Reads the name of a mergeable type: a torch name (with or without `torch.`), a safetensors
    /// name in any case, or one of the usual short forms (`bf16`, `fp16`, `half`, `fp32`, `float`,
    /// `fp64`, `double`, `fp8`).
    ///
    /// # Examples
    ///
    /// ```
    /// use thalweg::Dtype;
    ///
    /// assert_eq!(Dtype::parse("bfloat16"), Some(Dtype::BF16));
    /// assert_eq!(Dtype::parse("bfloat17"), None);
    /// ```
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.trim().to_ascii_lowercase();
        let lower = lower.strip_prefix("torch.").unwrap_or(&lower);
        let short = match lower {
            "fp16" | "half" => Some(Self::F16),
            "fp32" | "float" => Some(Self::F32),
            "fp64" | "double" => Some(Self::F64),
            "fp8" | "float8_e4m3" | "fp8_e4m3" => Some(Self::F8E4M3),
            "fp8_e5m2" => Some(Self::F8E5M2),
            _ => None,
        };
        short.or_else(|| {
            Self::MERGEABLE.into_iter().find(|dtype| {
                dtype.torch_name() == Some(lower) || dtype.name().eq_ignore_ascii_case(lower)
            })
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_dtype() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        for dtype in Dtype::MERGEABLE {
            assert_eq!(dtype.torch_name().and_then(Dtype::parse), Some(dtype));
            assert_eq!(Dtype::parse(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::parse("torch.bfloat16"), Some(Dtype::BF16));
        assert_eq!(Dtype::parse("int64"), None);
    }
}
