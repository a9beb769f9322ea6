//! What is read how often, and what it takes: properties of plans for any tensors and any memory.
//!
//! The inputs are files of holes with a true header, so that big tensors cost nothing.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Map, json};
use thalweg::plan::Plan;
use thalweg::plan::memory::WINDOW_EDGE_BYTES;
use thalweg::plan::schedule::{Block, Role};
use thalweg::plan::tensor::Action;

use super::same_bytes::least_memory;
use super::{Place, Run, recipe};

/// A tensor of the inputs: its dtype in each of them, its shape.
#[derive(Debug, Clone)]
struct Shape {
    dtypes: Vec<(&'static str, u64)>,
    dimensions: Vec<u64>,
}

const FLOATS: [(&str, u64); 4] = [("F64", 8), ("F32", 4), ("BF16", 2), ("F8_E4M3", 1)];

fn write_holes(path: &Path, shapes: &[Shape], input: usize) {
    let (mut header, mut end) = (Map::new(), 0);
    for (i, shape) in shapes.iter().enumerate() {
        let (name, bytes) = shape.dtypes[input % shape.dtypes.len()];
        let len = shape.dimensions.iter().product::<u64>() * bytes;
        let entry =
            json!({ "dtype": name, "shape": shape.dimensions, "data_offsets": [end, end + len] });
        header.insert(format!("t{i}"), entry);
        end += len;
    }
    let header = json!(header).to_string();
    let length = u64::try_from(header.len()).expect("small");
    fs::write(
        path,
        [length.to_le_bytes().as_slice(), header.as_bytes()].concat(),
    )
    .expect("a writable folder");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the file");
    file.set_len(8 + length + end).expect("holes");
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let dimensions = prop_oneof![
        Just(vec![]),
        prop::collection::vec(0..40u64, 1..4),
        (1..6_000_000u64).prop_map(|len| vec![len]),
        (1..6u64, 1..900_000u64).prop_map(|(rows, columns)| vec![rows, columns]),
        (1..4000u64, 1..600u64).prop_map(|(rows, columns)| vec![rows, columns]),
    ];
    let floats = prop::collection::vec(prop::sample::select(&FLOATS[..]), 5);
    let dtypes = prop_oneof![8 => floats, 1 => Just(vec![("I64", 8)]), 1 => Just(vec![("U8", 1)])];
    prop::collection::vec(
        (dtypes, dimensions).prop_map(|(dtypes, dimensions)| Shape { dtypes, dimensions }),
        1..8,
    )
}

#[derive(Debug, Clone)]
struct Case {
    shapes: Vec<Shape>,
    inputs: usize,
    method: &'static str,
    granularity: &'static str,
    threads: usize,
    block_bytes: Option<u64>,
    more_memory: u64,
    /// For each tensor, the share of 1000 that is durable.
    durable: Vec<u64>,
}

fn cases() -> impl Strategy<Value = Case> {
    let how = (
        prop::sample::select(&["karcher", "linear"][..]),
        prop::sample::select(&["tensor", "row", "model"][..]),
    );
    let memory = prop_oneof![Just(0), 0..200_000_000u64, 0..4_000_000u64];
    let block_bytes = prop_oneof![Just(None), (1..8_000_000u64).prop_map(Some)];
    let durable = prop::collection::vec(prop_oneof![Just(0), Just(1000), 0..1000u64], 8);
    (
        shapes(),
        2..6usize,
        how,
        1..6usize,
        block_bytes,
        memory,
        durable,
    )
        .prop_map(
            |(
                shapes,
                inputs,
                (method, granularity),
                threads,
                block_bytes,
                more_memory,
                durable,
            )| Case {
                shapes,
                inputs,
                method,
                granularity,
                threads,
                block_bytes,
                more_memory,
                durable,
            },
        )
}

impl Case {
    fn plan(&self) -> Plan {
        let place = Place::new();
        let write = |input: usize| -> PathBuf {
            let path = place.path(&format!("m{input}.safetensors"));
            write_holes(&path, &self.shapes, input);
            path
        };
        let paths: Vec<PathBuf> = (0..self.inputs).map(write).collect();
        let weights = vec![1.0; self.inputs];
        let run = Run::new(recipe(self.method, &paths, Some(&weights)))
            .with("granularity", self.granularity);
        let run = Run {
            threads: self.threads,
            block_bytes: self.block_bytes,
            ..run
        };
        let memory = least_memory(&run) + self.more_memory;
        Run { memory, ..run }
            .plan()
            .expect("the least memory or more is enough")
    }
}

/// What the reader reserves for a block.
fn cost(plan: &Plan, block: &Block) -> u64 {
    let tensor = &plan.tensors[block.tensor];
    let windows = u64::try_from(tensor.sources.len()).expect("small");
    block.len * tensor.source_units() + windows * WINDOW_EDGE_BYTES
}

fn makes_output(role: Role) -> bool {
    !matches!(role, Role::Measure { keep: false, .. })
}

/// Asserts that the blocks of one tensor follow each other without a gap from `start`, and returns
/// where they end.
fn end_of(start: u64, blocks: impl Iterator<Item = Block>) -> u64 {
    blocks.fold(start, |end, block| {
        assert_eq!(block.start, end, "a gap, or something twice");
        assert!(block.len > 0, "an empty block");
        end + block.len
    })
}

/// Everything is read once, or once to be measured and once more to be applied, and never both to
/// no purpose.
fn check_reading(plan: &Plan, over_model: bool) {
    let nothing = vec![0; plan.tensors.len()];
    let blocks: Vec<Block> = plan.schedule(&nothing, false).collect();
    for (index, tensor) in plan.tensors.iter().enumerate() {
        let own = || {
            blocks
                .iter()
                .copied()
                .filter(move |block| block.tensor == index)
        };
        assert_eq!(
            end_of(0, own().filter(|block| makes_output(block.role))),
            tensor.elements,
            "output of {index}"
        );
        let dropped = end_of(0, own().filter(|block| !makes_output(block.role)));
        let applied: u64 = own()
            .filter(|block| block.role == Role::Apply)
            .map(|block| block.len)
            .sum();
        assert_eq!(
            dropped, applied,
            "what is read twice is measured, then applied"
        );
        assert!(
            dropped == 0 || dropped == tensor.elements,
            "all of a tensor is read equally often"
        );
        let windows = tensor.segment.div_ceil(plan.memory.block) * plan.inputs.len() as u64;
        let whole = tensor.segment * tensor.source_units() + windows * WINDOW_EDGE_BYTES;
        let twice = dropped > 0;
        let fits = tensor.segment <= plan.memory.block || whole <= plan.memory.input;
        let measured =
            matches!(&tensor.action, Action::Merge(method) if method.name() == "karcher");
        let wanted = measured && tensor.elements > 0 && (over_model || !fits);
        assert_eq!(
            twice, wanted,
            "tensor {index} is read twice, or is not, without need: {tensor:?}"
        );
    }
}

/// What is held at once never exceeds what there is.
fn check_memory(plan: &Plan) {
    let memory = &plan.memory;
    assert!(
        memory.fixed + memory.input + memory.output <= memory.limit,
        "more is handed out than there is: {memory:?}"
    );
    let nothing = vec![0; plan.tensors.len()];
    let mut kept = 0;
    for block in plan.schedule(&nothing, false) {
        let cost = cost(plan, &block);
        assert!(cost <= memory.input, "{block:?} takes {cost} of {memory:?}");
        if makes_output(block.role) {
            let bytes = block.len * plan.tensors[block.tensor].output_unit();
            assert!(
                bytes <= memory.output,
                "{block:?} makes {bytes} of {memory:?}"
            );
        }
        if let Role::Measure {
            keep: true, last, ..
        } = block.role
        {
            kept += cost;
            assert!(kept <= memory.input, "{kept} are kept of {memory:?}");
            kept = if last { 0 } else { kept };
        }
    }
    assert_eq!(kept, 0, "a group without an end");
}

/// A resumed run makes all that is missing, in order, and each group it applies was measured
/// before.
fn check_resuming(plan: &Plan, shares: &[u64]) {
    let durable: Vec<u64> = plan
        .tensors
        .iter()
        .zip(shares)
        .map(|(t, share)| t.elements * share / 1000 * t.output_unit())
        .collect();
    for solved in [false, true] {
        let blocks: Vec<Block> = plan.schedule(&durable, solved).collect();
        for (index, tensor) in plan.tensors.iter().enumerate() {
            let done = durable[index] / tensor.output_unit();
            let own: Vec<Block> = blocks
                .iter()
                .copied()
                .filter(|b| b.tensor == index && makes_output(b.role))
                .collect();
            let start = own.first().map_or(tensor.elements, |block| block.start);
            assert!(
                start <= done,
                "elements {done} to {start} of tensor {index} are missing"
            );
            let mut end = start;
            for block in own {
                // What lies before is durable already and may be left out.
                assert!(
                    block.start == end || (block.start > end && block.start <= done),
                    "{block:?} after {end}"
                );
                end = block.start + block.len;
            }
            assert_eq!(end, tensor.elements, "the end of tensor {index}");
            assert!(
                done < tensor.elements || start == tensor.elements,
                "tensor {index} is durable"
            );
        }
        let mut open = None;
        for block in &blocks {
            match block.role {
                Role::Measure { last, .. } => open = last.then_some(block.tensor),
                Role::Apply if !plan.is_over_model() => {
                    assert_eq!(open, Some(block.tensor), "applied unmeasured")
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_element_is_read_once_or_twice_within_the_memory(case in cases()) {
        let plan = case.plan();
        check_reading(&plan, case.granularity == "model");
        check_memory(&plan);
        check_resuming(&plan, &case.durable);
    }
}

#[test]
fn one_reading_is_enough_from_some_memory_on() {
    let shapes = [Shape {
        dtypes: vec![("BF16", 2)],
        dimensions: vec![4, 5_000_000],
    }];
    let case = |more_memory| Case {
        shapes: shapes.to_vec(),
        inputs: 3,
        method: "karcher",
        granularity: "tensor",
        threads: 2,
        block_bytes: None,
        more_memory,
        durable: vec![0],
    };
    let read = |more_memory| {
        let plan = case(more_memory).plan();
        let nothing = [0];
        let elements: u64 = plan.schedule(&nothing, false).map(|block| block.len).sum();
        elements
    };
    assert_eq!(read(0), 40_000_000);
    assert_eq!(read(100 << 20), 40_000_000);
    assert_eq!(read(300 << 20), 20_000_000);
}
