//! The storage layouts of quantised weights: their names, the tensors that identify them, and the
//! way back to floats.

use crate::dtype::Dtype;

/// A storage layout of weights as codes that mean nothing without their scales.
#[derive(Debug)]
pub struct Layout {
    /// Its name.
    pub name: &'static str,
    /// Its `quant_method` and other names in configs, in lower case.
    pub methods: &'static [&'static str],
    /// The tensors that identify it; any one suffices.
    pub marks: &'static [Mark],
    /// The advice for converting such a model back to floats.
    pub cure: &'static str,
}

/// A tensor that identifies a layout.
#[derive(Debug)]
pub struct Mark {
    /// The end of its name.
    pub code: &'static str,
    /// The dtypes that it may have.
    pub holds: Holds,
    /// Replacements of `code`; a tensor with one of these names must exist too. Empty when the name
    /// alone suffices.
    pub with: &'static [&'static str],
}

/// The dtypes of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Any dtype: some writers keep packed codes in tensors of floats.
    Anything,
    /// Integers.
    Integers,
    /// Unsigned integers of 32 bits.
    Words,
    /// Numbers of eight bits or less, floats or integers.
    Bytes,
    /// Floats of eight bits.
    Fp8,
}

impl Holds {
    /// Tells if a tensor of this dtype can hold such codes.
    pub fn fits(self, dtype: Dtype) -> bool {
        use Dtype::{I8, I16, I32, I64, U8, U16, U32, U64};
        match self {
            Self::Anything => true,
            Self::Integers => matches!(dtype, I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8),
            Self::Words => dtype == U32,
            Self::Bytes => is_code(dtype) && dtype.bits() <= 8,
            Self::Fp8 => is_fp8(dtype),
        }
    }
}

/// Tells if elements of this type may be codes of weights: neither ordinary floats nor types that
/// only buffers have.
pub fn is_code(dtype: Dtype) -> bool {
    use Dtype::{BF16, Bool, C64, F16, F32, F64, I64, U64};
    !matches!(dtype, F64 | F32 | F16 | BF16 | Bool | C64 | I64 | U64)
}

/// Tells if elements of this type are floats of eight bits.
pub fn is_fp8(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::F8E4M3Fnuz | Dtype::F8E5M2Fnuz
    )
}

const fn mark(code: &'static str, holds: Holds, with: &'static [&'static str]) -> Mark {
    Mark { code, holds, with }
}

const TRANSFORMERS: &str = "load it in transformers with the library of its layout and call `model.dequantize()` before \
                            `save_pretrained`";
const ORIGINAL: &str =
    "take the checkpoint in 16 bits that it was made from: most publishers keep both";
const BITSANDBYTES: &str = "load it in transformers (with bitsandbytes), call `model.dequantize()`, then `save_pretrained`";
const GPTQ: &str = "take the checkpoint in 16 bits that it was made from, or unpack it with GPTQModel (`dequantize_model`)";
const FP8: &str = "write its weights as bfloat16 first: in transformers, load it with \
                   `FineGrainedFP8Config(dequantize=True)` and `save_pretrained`";
const COMPRESSED: &str = "write its weights as bfloat16 first: in transformers, load it with \
                          `CompressedTensorsConfig(run_compressed=False)` and `save_pretrained`";
const MXFP4: &str = "write its weights as bfloat16 first: in transformers, load it with `Mxfp4Config(dequantize=True)` and \
                     `save_pretrained`";
const MLX: &str = "undo it with `mlx_lm.convert --dequantize`";
const COMFY: &str =
    "take the file in 16 bits that it was made from: it lies beside most scaled ones";

/// All known layouts, the specific before the general.
pub const LAYOUTS: &[Layout] = &[
    Layout {
        name: "bitsandbytes, 4 bits (NF4 or FP4)",
        methods: &["bitsandbytes_4bit", "bnb_4bit"],
        marks: &[
            mark(".quant_state.bitsandbytes__nf4", Holds::Anything, &[]),
            mark(".quant_state.bitsandbytes__fp4", Holds::Anything, &[]),
            mark(".quant_map", Holds::Anything, &[".absmax"]),
        ],
        cure: BITSANDBYTES,
    },
    Layout {
        name: "bitsandbytes, 8 bits (LLM.int8)",
        methods: &["bitsandbytes_8bit", "bnb_8bit"],
        marks: &[
            mark(".weight", Holds::Integers, &[".SCB", ".weight_format"]),
            mark(".SCB", Holds::Anything, &[".weight"]),
        ],
        cure: BITSANDBYTES,
    },
    Layout {
        name: "SVDQuant (Nunchaku)",
        methods: &["svdquant", "nunchaku"],
        marks: &[mark(
            ".qweight",
            Holds::Anything,
            &[".wscales", ".wtscale", ".wcscales"],
        )],
        cure: ORIGINAL,
    },
    Layout {
        name: "ComfyUI's scaled weights",
        methods: &["comfy", "comfyui"],
        marks: &[
            mark(".comfy_quant", Holds::Anything, &[]),
            mark(".weight", Holds::Bytes, &[".scale_weight", ".scale_input"]),
            mark("scaled_fp8", Holds::Anything, &[]),
        ],
        cure: COMFY,
    },
    Layout {
        name: "MLX",
        methods: &["mlx"],
        marks: &[mark(".weight", Holds::Words, &[".scales", ".biases"])],
        cure: MLX,
    },
    Layout {
        name: "MXFP4 (gpt-oss)",
        methods: &["mxfp4"],
        marks: &[mark("_blocks", Holds::Bytes, &["_scales"])],
        cure: MXFP4,
    },
    Layout {
        name: "NVFP4",
        methods: &["nvfp4", "modelopt_fp4", "nvfp4_awq", "fouroversix"],
        marks: &[
            mark(
                "weight",
                Holds::Bytes,
                &["weight_scale_2", "weight_global_scale"],
            ),
            mark(
                "weight_packed",
                Holds::Anything,
                &["weight_global_scale", "weight_scale_2"],
            ),
        ],
        cure: ORIGINAL,
    },
    Layout {
        name: "compressed-tensors",
        methods: &["compressed-tensors", "compressed_tensors", "sparseml"],
        marks: &[
            mark(
                "weight_packed",
                Holds::Anything,
                &["weight_scale", "weight_shape", "weight_zero_point"],
            ),
            mark(".bitmask", Holds::Anything, &[".compressed"]),
            mark(".compressed", Holds::Anything, &[".row_offsets", ".shape"]),
        ],
        cure: COMPRESSED,
    },
    Layout {
        name: "torchao",
        methods: &["torchao"],
        marks: &[
            mark("_weight_qdata", Holds::Anything, &[]),
            mark(":_data", Holds::Anything, &[]),
            mark(":qdata", Holds::Anything, &[]),
            mark("weight_qdata", Holds::Anything, &["weight_scale"]),
        ],
        cure: TRANSFORMERS,
    },
    Layout {
        name: "quanto",
        methods: &["quanto"],
        marks: &[
            mark("._data", Holds::Anything, &["._scale"]),
            mark("._data._data", Holds::Anything, &[]),
        ],
        cure: ORIGINAL,
    },
    Layout {
        name: "HQQ",
        methods: &["hqq"],
        marks: &[mark(
            ".W_q",
            Holds::Anything,
            &[".nbits", ".zero", ".meta", ".group_size"],
        )],
        cure: TRANSFORMERS,
    },
    Layout {
        name: "AQLM",
        methods: &["aqlm"],
        marks: &[mark(".codes", Holds::Integers, &[".codebooks"])],
        cure: ORIGINAL,
    },
    Layout {
        name: "VPTQ",
        methods: &["vptq"],
        marks: &[mark(".indices", Holds::Integers, &[".centroids.weight"])],
        cure: ORIGINAL,
    },
    Layout {
        name: "SpQR",
        methods: &["spqr"],
        marks: &[mark(
            ".dense_weights",
            Holds::Anything,
            &[".row_offsets", ".col_vals", ".second_order_data"],
        )],
        cure: ORIGINAL,
    },
    Layout {
        name: "HIGGS",
        methods: &["higgs"],
        marks: &[mark(".weight", Holds::Integers, &[".tables2", ".tables"])],
        cure: TRANSFORMERS,
    },
    Layout {
        name: "FP-Quant",
        methods: &["fp_quant", "quartet"],
        marks: &[mark(
            ".qweight",
            Holds::Bytes,
            &[".forward_hadamard_matrix", ".weight_global_scale"],
        )],
        cure: TRANSFORMERS,
    },
    Layout {
        name: "QuIP#",
        methods: &["quip", "quip#"],
        marks: &[mark(".Qidxs", Holds::Anything, &[".SU", ".SV"])],
        cure: ORIGINAL,
    },
    Layout {
        name: "EXL3 or QTIP",
        methods: &["exl3", "qtip"],
        marks: &[mark(
            ".trellis",
            Holds::Anything,
            &[".suh", ".su", ".SU", ".svh"],
        )],
        cure: ORIGINAL,
    },
    Layout {
        name: "EXL2",
        methods: &["exl2"],
        marks: &[mark(
            ".q_weight",
            Holds::Integers,
            &[".q_scale", ".q_groups"],
        )],
        cure: ORIGINAL,
    },
    Layout {
        name: "SqueezeLLM",
        methods: &["squeezellm"],
        marks: &[mark(".qweight", Holds::Integers, &[".lookup_table"])],
        cure: ORIGINAL,
    },
    Layout {
        name: "GPTQ",
        methods: &[
            "gptq",
            "auto-round",
            "auto_round",
            "autoround",
            "intel/auto-round",
            "gptqmodel",
        ],
        marks: &[mark(".qweight", Holds::Integers, &[".g_idx"])],
        cure: GPTQ,
    },
    Layout {
        name: "AWQ or GPTQ",
        methods: &["awq", "gemm", "gemv", "llm-awq"],
        marks: &[mark(".qweight", Holds::Integers, &[".qzeros", ".scales"])],
        cure: ORIGINAL,
    },
    Layout {
        name: "Marlin",
        methods: &["marlin", "gptq_marlin"],
        marks: &[mark(".B", Holds::Integers, &[".s"])],
        cure: ORIGINAL,
    },
    Layout {
        name: "EETQ",
        methods: &["eetq"],
        marks: &[mark(".weight", Holds::Integers, &[".weight_scales"])],
        cure: ORIGINAL,
    },
    Layout {
        name: "TensorRT-LLM",
        methods: &["tensorrt_llm", "trtllm"],
        marks: &[mark(".weight", Holds::Bytes, &[".weights_scaling_factor"])],
        cure: ORIGINAL,
    },
    Layout {
        name: "FBGEMM FP8",
        methods: &["fbgemm_fp8", "fbgemm"],
        marks: &[],
        cure: TRANSFORMERS,
    },
    Layout {
        name: "BitNet",
        methods: &["bitnet"],
        marks: &[],
        cure: ORIGINAL,
    },
    Layout {
        name: "Quark",
        methods: &["quark"],
        marks: &[],
        cure: ORIGINAL,
    },
    Layout {
        name: "SINQ",
        methods: &["sinq"],
        marks: &[],
        cure: ORIGINAL,
    },
    Layout {
        name: "ModelOpt",
        methods: &["modelopt", "modelopt_fp8"],
        marks: &[],
        cure: ORIGINAL,
    },
    Layout {
        name: "bitsandbytes",
        methods: &["bitsandbytes", "bnb", "load_in_4bit", "load_in_8bit"],
        marks: &[],
        cure: BITSANDBYTES,
    },
    Layout {
        name: "FP8 with a scale for each block",
        methods: &["fp8", "mxfp8", "finegrained_fp8", "blockfp8"],
        marks: &[
            mark("weight", Holds::Fp8, &["weight_scale_inv"]),
            mark("_proj", Holds::Fp8, &["_proj_scale_inv"]),
        ],
        cure: FP8,
    },
];

/// The suffixes of tensors beside a tensor of codes, in any layout, added to its whole name.
pub const BESIDE_TENSOR: [&str; 9] = [
    "_scale",
    "_scale_inv",
    "_scales",
    "_scale_2",
    "_zero_point",
    "_zeros",
    "_scaling_factor",
    "_scales_and_zeros",
    ".scale",
];

/// The names that replace `weight` in tensors beside one that is called `weight`.
pub const BESIDE_WEIGHT: [&str; 10] = [
    "scale",
    "scales",
    "scale_inv",
    "scale_weight",
    "weights_scaling_factor",
    "input_scale",
    "scale_input",
    "zero_point",
    "zeros",
    "qzeros",
];

/// Endings of tensors that only quantised models have: they confirm a config's statement even if
/// the weights beside them have dtypes of floats.
pub const COMPANIONS: [&str; 14] = [
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_scale_2",
    ".weight_scales",
    ".weight_zero_point",
    ".weight_packed",
    ".weight_global_scale",
    ".weights_scaling_factor",
    ".scale_weight",
    ".qweight",
    ".qzeros",
    ".SCB",
    ".absmax",
    ".comfy_quant",
];

/// The layout of codes without a known name.
pub const UNNAMED: Layout = Layout {
    name: "codes with scales beside them",
    methods: &[],
    marks: &[],
    cure: ORIGINAL,
};

/// The microscaling formats, whose scales have a type of their own.
pub const MICROSCALING: Layout = Layout {
    name: "microscaling (MX)",
    methods: &[],
    marks: &[],
    cure: ORIGINAL,
};

/// Eight-bit floats with scales, by tensor or by channel.
pub const SCALED_FP8: Layout = Layout {
    name: "FP8 with scales",
    methods: &[],
    marks: &[],
    cure: FP8,
};

/// Returns the layout that configs call `method`.
pub fn called(method: &str) -> Option<&'static Layout> {
    let method = method.to_ascii_lowercase();
    LAYOUTS
        .iter()
        .find(|layout| layout.methods.contains(&method.as_str()))
}
