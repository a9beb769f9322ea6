//! Data sets as files, right and wrong.

use std::path::Path;

use safetensors::Dtype;
use thalweg::data::DataSet;
use thalweg::kernel::Kernels;

use super::{narrow, write_data};

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn open(path: &Path) -> thalweg::Result<DataSet> {
    DataSet::open(path, Kernels::detect())
}

#[test]
fn samples_are_read_in_runs_and_by_number() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("data.safetensors");
    let inputs: Vec<u8> = (0..12).map(|at| at * 20).collect();
    let labels: Vec<u8> = [3_i64, 1, 2]
        .iter()
        .flat_map(|label| label.to_le_bytes())
        .collect();
    let tensors = [
        ("inputs", Dtype::U8, vec![3, 1, 2, 2], inputs),
        ("labels", Dtype::I64, vec![3], labels),
    ];
    write_data(&path, &tensors, &[("mean", "0.5"), ("std", "2")]);
    let data = open(&path).expect("a data set");
    assert_eq!((data.samples(), data.shape()), (3, [1, 2, 2].as_slice()));
    let value = |at: u32| narrow((f64::from(at) * 20.0 / 255.0 - 0.5) / 2.0);
    let batch = data.read(1..3).expect("read");
    assert_eq!(batch.labels, [1, 2]);
    assert_eq!(batch.inputs, (4..12).map(value).collect::<Vec<_>>());
    let batch = data.gather(&[2, 0]).expect("read");
    assert_eq!(batch.labels, [2, 3]);
    assert_eq!(batch.inputs, [8, 9, 10, 11, 0, 1, 2, 3].map(value));
}

#[test]
fn data_sets_that_are_none_are_refused_by_key() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("data.safetensors");
    let good = || ("inputs", Dtype::F32, vec![2, 3], floats(&[0.0; 6]));
    let labels = |bytes: &[u8]| ("labels", Dtype::U8, vec![bytes.len()], bytes.to_vec());
    let refused =
        |tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)], metadata: &[(&str, &str)], words: &str| {
            write_data(&path, tensors, metadata);
            let error = open(&path)
                .and_then(|data| data.read(0..data.samples()))
                .expect_err(words)
                .to_string();
            assert!(error.contains(words), "wanted {words:?} in {error}");
            assert!(error.contains("data.safetensors"), "{error}");
        };
    refused(&[good()], &[], "`labels`: there is no such tensor");
    refused(&[labels(&[1, 2])], &[], "`inputs`: there is no such tensor");
    refused(
        &[good(), labels(&[1, 2, 3])],
        &[],
        "`labels`: wanted shape [2], one a sample, got [3]",
    );
    refused(
        &[good(), ("labels", Dtype::F32, vec![2], floats(&[0.0; 2]))],
        &[],
        "`labels`: wanted an integer type",
    );
    refused(
        &[good(), ("labels", Dtype::I8, vec![2], vec![0, 255])],
        &[],
        "`labels`: sample 1: label -1 is no class",
    );
    refused(
        &[
            ("inputs", Dtype::I32, vec![2, 1], vec![0; 8]),
            labels(&[1, 2]),
        ],
        &[],
        "`inputs`: wanted U8 or a float",
    );
    refused(
        &[("inputs", Dtype::F32, vec![2], vec![0; 8]), labels(&[1, 2])],
        &[],
        "`inputs`: wanted shape [samples",
    );
    refused(
        &[("inputs", Dtype::F32, vec![0, 2], vec![]), labels(&[])],
        &[],
        "`inputs`: there is not one sample",
    );
    refused(
        &[good(), labels(&[1, 2])],
        &[("std", "0")],
        "`__metadata__.std`: wanted numbers above 0",
    );
    let odd = (
        "inputs",
        Dtype::F32,
        vec![2, 3],
        floats(&[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]),
    );
    refused(
        &[odd, labels(&[1, 2])],
        &[],
        "`inputs`: sample 1, number 1: the value is NaN",
    );
    std::fs::write(&path, "text").expect("written");
    assert!(open(&path).is_err());
}
