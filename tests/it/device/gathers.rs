//! Reordered columns on a device against the view of an aligned model, bit for bit: every type,
//! sizes around a block of threads.

use std::sync::Arc;

use safetensors::Dtype as Stored;
use thalweg::checkpoint::{Checkpoint, SourceOptions};
use thalweg::device::{Kernel, LaneGuard, Lanes};
use thalweg::dtype::Dtype;
use thalweg::kernel::{Elements, Kernels};
use thalweg::linalg::Columns;
use thalweg::symmetry::{Alignment, AxisMap, Element, Spec, Symmetries, Transform};
use thalweg::view::{Aligned, Below, Readable, Stored as Place};

use super::kernels::{driver, split_mix};
use crate::support::reference::files::write_model;
use crate::support::reference::{Model, Tensor};

const BLOCK: usize = Kernel::BLOCK as usize;
const SPEC: &str = "
name: own
groups: { hidden: { allows: [permutation, sign] } }
tensors:
  - { name: in, axes: [hidden, fixed] }
  - { name: out, axes: [fixed, hidden] }
";

fn noise(dtype: Dtype, shape: &[usize], seed: u64) -> Vec<u8> {
    let mut state = seed;
    let count = shape.iter().product::<usize>() * dtype.bytes();
    (0..count)
        .map(|_| split_mix(&mut state).to_le_bytes()[7])
        .collect()
}

/// Moves `rows` rows of `columns` columns on both sides; every bit must agree.
fn compare(stored: Stored, dtype: Dtype, rows: usize, columns: usize, signs: bool) {
    let tensor =
        |shape: &[usize], seed| Tensor::from_bytes(stored, shape, noise(dtype, shape, seed));
    let model = Model::from([
        ("in".to_owned(), tensor(&[columns, 3], 1)),
        (
            "out".to_owned(),
            tensor(&[rows, columns], 2 + columns as u64),
        ),
    ]);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    write_model(folder.path(), &model, 1);
    let opened = Checkpoint::open(folder.path()).expect("opens");
    let spec = Spec::parse(SPEC, "own.yml").expect("a spec");
    let symmetries = Arc::new(Symmetries::of(&opened, Some(&spec)).expect("it fits"));
    let mut random = Transform::random(&symmetries, columns as u64)
        .elements()
        .to_vec();
    if !signs {
        random.iter_mut().for_each(|element| {
            *element = Element {
                negative: vec![],
                ..element.clone()
            }
        });
    }
    let transform = Arc::new(Transform::new(&symmetries, random).expect("it fits"));
    let alignment = Alignment {
        symmetries: Arc::clone(&symmetries),
        transform,
    };

    let entry = &opened.tensors()["out"];
    let options = SourceOptions {
        io: Default::default(),
        scratch: None,
    };
    let source = opened.open_file(entry.file, &options).expect("opens");
    let place = Place {
        source: source.as_ref(),
        offset: entry.bytes.start,
        unit: dtype.bytes() as u64,
    };
    let below = Below {
        tensors: &[&place as &dyn Readable],
        kernels: Kernels::detect(),
        pool: None,
    };
    let bytes = &model["out"].bytes;
    let map = AxisMap::new(&alignment, &symmetries.tensors["out"], 1);
    let Some(view) = Aligned::new(&alignment, "out", dtype).expect("floats") else {
        // One column or two may happen to stay as they are.
        return assert!(columns < 3 && map.is_none());
    };
    let mut wanted = vec![0; bytes.len()];
    view.gather()
        .read(below, 0..(rows * columns) as u64, &mut wanted)
        .expect("read");

    let map = map.expect("a view moves something");
    let places = Columns::new(&map.source, &map.negative);
    let lanes =
        Lanes::new(driver(), 1, LaneGuard::gather_bytes(bytes.len(), columns)).expect("memory");
    let mut got = vec![0x77; bytes.len()];
    lanes
        .take()
        .and_then(|mut lane| lane.gather(Elements { dtype, bytes }, &places, &mut got))
        .expect("no failure");
    assert!(got == wanted, "{dtype}: {rows} x {columns}, signs {signs}");

    // The same when rows and columns are taken apart.
    let (mut gather, apart) = view.apart().expect("columns alone are moved");
    assert_eq!(apart, places);
    let mut plain = vec![0; bytes.len()];
    gather
        .read(below, 0..(rows * columns) as u64, &mut plain)
        .expect("read");
    assert!(
        plain == *bytes,
        "the rows of {rows} x {columns} are not as they are stored"
    );
}

#[test]
fn reordered_columns_are_those_of_the_aligned_view() {
    let types = [
        (Stored::F64, Dtype::F64),
        (Stored::F32, Dtype::F32),
        (Stored::F16, Dtype::F16),
        (Stored::BF16, Dtype::BF16),
        (Stored::F8_E4M3, Dtype::F8E4M3),
        (Stored::F8_E5M2, Dtype::F8E5M2),
    ];
    for (stored, dtype) in types {
        for columns in [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1] {
            for rows in [1, 2, 5] {
                for signs in [false, true] {
                    compare(stored, dtype, rows, columns, signs);
                }
            }
        }
    }
    // More rows than blocks of threads share.
    compare(Stored::BF16, Dtype::BF16, 1025, 3, true);
}

#[test]
fn nothing_and_rows_of_nothing_are_moved_too() {
    for (rows, columns) in [(0, 4), (0, 0)] {
        let source: Vec<u32> = (0..columns).rev().collect();
        let places = Columns::new(&source, &[]);
        let lanes = Lanes::new(
            driver(),
            1,
            LaneGuard::gather_bytes(0, places.len()).max(256),
        )
        .expect("memory");
        let bytes = vec![0; rows];
        let elements = Elements {
            dtype: Dtype::BF16,
            bytes: &bytes,
        };
        lanes
            .take()
            .and_then(|mut lane| lane.gather(elements, &places, &mut []))
            .expect("no failure");
    }
}
