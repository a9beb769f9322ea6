//! References of a pickle to storages, the flat arrays that tensors are views of.

use super::fault::{Fault, Parsed};
use super::pickle::{Graph, Id};
use crate::dtype::Dtype;

/// A persistent id: `('storage', class, key, location, elements[, (view key, offset, elements)])`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reference<'g> {
    pub(super) key: &'g str,
    /// The storage's class, such as `FloatStorage`.
    pub(super) class: &'g str,
    /// The element type, if this program supports it.
    pub(super) dtype: Option<Dtype>,
    pub(super) element_bytes: u64,
    pub(super) elements: u64,
    /// The referenced part of the storage, in elements: the first one and their number.
    pub(super) view: Option<(u64, u64)>,
}

impl<'g> Reference<'g> {
    /// Reads the persistent id `id`.
    pub(super) fn parse(graph: &'g Graph, id: Id) -> Parsed<Self> {
        let parts = graph.tuple(id).filter(|parts| matches!(parts.len(), 5 | 6));
        let parts = parts.filter(|parts| graph.text(parts[0]) == Some("storage"));
        let parts = parts
            .ok_or_else(|| Fault::new("refers to something outside the file that is no storage"))?;
        let (module, class) = graph
            .global(parts[1])
            .ok_or_else(|| Fault::new(format!("storage is {}", graph.describe(parts[1]))))?;
        if !matches!(module, "torch" | "torch.cuda" | "torch.storage") {
            return Err(Fault::new(format!(
                "storage is of class {module}.{class}, which is not torch's"
            )));
        }
        let (dtype, element_bytes) = element(class).ok_or_else(|| {
            Fault::new(format!(
                "storage is of class {module}.{class}, which is not known"
            ))
        })?;
        let key = graph
            .text(parts[2])
            .ok_or_else(|| Fault::new("storage key is not text"))?;
        let elements = count(graph, parts[4])?;
        let view = match parts.get(5).and_then(|view| graph.tuple(*view)) {
            Some([_, first, length]) => Some((count(graph, *first)?, count(graph, *length)?)),
            Some(_) => return Err(Fault::new("view of a storage has other than three parts")),
            None => None,
        };
        Ok(Self {
            key,
            class,
            dtype,
            element_bytes,
            elements,
            view,
        })
    }
}

/// Reads a number of elements or a position among them.
pub(super) fn count(graph: &Graph, id: Id) -> Parsed<u64> {
    graph
        .int(id)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or_else(|| {
            Fault::new(format!(
                "wanted a size or offset, got {}",
                graph.describe(id)
            ))
        })
}

/// Returns dtype and size in bytes of the elements of a storage class.
fn element(class: &str) -> Option<(Option<Dtype>, u64)> {
    let dtype = match class {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "BoolStorage" => Dtype::Bool,
        "ComplexFloatStorage" => Dtype::C64,
        "ByteStorage" | "UntypedStorage" => Dtype::U8,
        "ComplexDoubleStorage" => return Some((None, 16)),
        "QInt32Storage" => return Some((None, 4)),
        "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => {
            return Some((None, 1));
        }
        _ => return None,
    };
    Some((Some(dtype), dtype.bits() / 8))
}

/// Returns the element type that `torch.<name>` means.
pub(super) fn dtype_of(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" | "double" => Dtype::F64,
        "float32" | "float" => Dtype::F32,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float8_e4m3fn" => Dtype::F8E4M3,
        "float8_e5m2" => Dtype::F8E5M2,
        "float8_e4m3fnuz" => Dtype::F8E4M3Fnuz,
        "float8_e5m2fnuz" => Dtype::F8E5M2Fnuz,
        "float8_e8m0fnu" => Dtype::F8E8M0,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" => Dtype::I32,
        "int16" | "short" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::Bool,
        "complex64" | "cfloat" => Dtype::C64,
        _ => return None,
    })
}
