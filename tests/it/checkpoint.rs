//! Reading checkpoints: what is written by the reference comes back, what is damaged ends in one
//! clear error.

mod compressed;
mod damage;
mod folders;
mod lookalikes;
mod memory;
mod side;
mod sources;

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use thalweg::checkpoint::{Checkpoint, SourceOptions};

/// A tensor to be written: name, dtype, shape; its bytes follow from the name and `seed`.
type Spec<'a> = (&'a str, Dtype, &'a [usize]);

const SPECS: [Spec<'static>; 6] = [
    ("embed.weight", Dtype::BF16, &[37, 16]),
    ("layer.0.weight", Dtype::F32, &[16, 16]),
    ("norm.bias", Dtype::F16, &[]),
    ("empty", Dtype::F32, &[0, 8]),
    ("mask", Dtype::BOOL, &[13]),
    ("position_ids", Dtype::I64, &[1, 5]),
];

/// Bytes of prime period, so that swapped or shifted blocks cannot look alike.
fn bytes_of(name: &str, dtype: Dtype, shape: &[usize], seed: u8) -> Vec<u8> {
    let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    let start = name
        .bytes()
        .fold(usize::from(seed), |sum, byte| sum + usize::from(byte));
    (start..start + len)
        .map(|i| u8::try_from(i % 251).expect("below 251"))
        .collect()
}

/// A whole safetensors file, written by the reference.
fn file_of(specs: &[Spec<'_>], seed: u8) -> Vec<u8> {
    let data: Vec<_> = specs
        .iter()
        .map(|(name, dtype, shape)| bytes_of(name, *dtype, shape, seed))
        .collect();
    let views = specs.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (
            *name,
            TensorView::new(*dtype, shape.to_vec(), data).expect("data fits shape"),
        )
    });
    safetensors::serialize(views, None).expect("serialise")
}

/// A file with this header and as many bytes of data.
fn raw_file(json: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.resize(file.len() + data_bytes, 0x5A);
    file
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    fs::write(folder.join(name), content).expect("write into temporary folder");
}

/// Asserts that every tensor of `specs` is in `checkpoint` and reads back whole.
fn assert_holds(checkpoint: &Checkpoint, specs: &[Spec<'_>], seed: u8, options: &SourceOptions) {
    for (name, dtype, shape) in specs {
        let entry = checkpoint
            .tensors()
            .get(*name)
            .unwrap_or_else(|| panic!("{name} is there"));
        assert_eq!(entry.dtype.name(), dtype.to_string());
        assert_eq!(
            entry.shape,
            shape.iter().map(|dim| *dim as u64).collect::<Vec<_>>()
        );
        let source = checkpoint
            .open_file(entry.file, options)
            .expect("open file");
        let window = source.load(entry.bytes.clone()).expect("load");
        assert_eq!(*window, bytes_of(name, *dtype, shape, seed), "{name}");
    }
}

/// The error that `path` ends in; also its hint, so that both can be searched.
fn refusal(path: &Path) -> String {
    match Checkpoint::open(path) {
        Ok(checkpoint) => panic!(
            "{} should be refused, holds {:?}",
            path.display(),
            checkpoint.tensors()
        ),
        Err(error) => format!("{error} [{}]", error.hint().unwrap_or_default()),
    }
}

/// Asserts that `path` is refused with a message that holds each of `parts`.
fn assert_refused(path: &Path, parts: &[&str]) {
    let message = refusal(path);
    for part in parts {
        assert!(message.contains(part), "{message:?} should say {part:?}");
    }
}
