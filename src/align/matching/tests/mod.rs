//! Weight matching compared with planted transforms, with brute force, and with itself under other
//! threads and memory.

mod flat;
mod hostile;
mod oracle;
mod same;
mod trees;
mod worth;

use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::terms::Tree;
use super::*;
use crate::align::Transformed;
use crate::kernel::Kernels;
use crate::symmetry::Alignment;
use crate::symmetry::spec::builtin;

type Tensors = IndexMap<String, (Vec<u64>, Vec<f32>)>;

/// A source of bell-shaped numbers of deviation one.
struct Bells(u64);

impl Bells {
    fn next(&mut self) -> f32 {
        let mut even = || {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            f32::from(u16::try_from(self.0 >> 48).expect("sixteen bits")) / 32768.0 - 1.0
        };
        (0..6).map(|_| even()).sum::<f32>() * std::f32::consts::FRAC_1_SQRT_2
    }
}

/// Makes tensors of these names and shapes, each with its own deviation.
fn random(shapes: &[(String, Vec<u64>)], seed: u64) -> Tensors {
    let mut bells = Bells(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let tensor = |(at, (name, shape)): (usize, &(String, Vec<u64>))| {
        let scale = [1.0, 0.02, 0.5][at % 3];
        let count = shape.iter().product::<u64>();
        (
            name.clone(),
            (
                shape.clone(),
                (0..count).map(|_| scale * bells.next()).collect(),
            ),
        )
    };
    shapes.iter().enumerate().map(tensor).collect()
}

/// Adds noise of `factor` times each tensor's deviation.
fn noised(tensors: &Tensors, factor: f32, seed: u64) -> Tensors {
    let mut bells = Bells(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut noisy = tensors.clone();
    for (_, values) in noisy.values_mut() {
        let deviation =
            (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
        values
            .iter_mut()
            .for_each(|value| *value += factor * deviation * bells.next());
    }
    noisy
}

fn store(tensors: &Tensors) -> Arc<Store> {
    let tensors = tensors
        .iter()
        .map(|(name, (shape, values))| (name.clone(), shape.clone(), values.clone()));
    Arc::new(Store::in_memory(tensors, Kernels::detect()))
}

fn symmetries(spec: &str, tensors: &Tensors, config: &Value) -> Arc<Symmetries> {
    let shapes = tensors
        .iter()
        .map(|(name, (shape, _))| (name.clone(), shape.clone()))
        .collect();
    let spec = builtin::named(spec).expect("a built-in spec");
    Arc::new(
        spec.resolve(&shapes, Some(config))
            .expect("a spec that fits"),
    )
}

/// Applies a transform to tensors.
fn applied(tensors: &Tensors, symmetries: &Arc<Symmetries>, transform: &Transform) -> Tensors {
    let alignment = Alignment {
        symmetries: Arc::clone(symmetries),
        transform: Arc::new(transform.clone()),
    };
    let moved = Transformed::new(store(tensors), alignment);
    let mut all = tensors.clone();
    for (name, (_, values)) in &mut all {
        let count = values.len() as u64;
        moved
            .tensor(name)
            .and_then(|mut it| it.read(0..count, values))
            .expect("is there");
    }
    all
}

/// Makes a random transform that leaves the residual stream fixed, with rotations if requested.
fn planted(symmetries: &Symmetries, seed: u64, residual: bool, rotations: bool) -> Transform {
    let random = Transform::random(symmetries, seed);
    let groups = symmetries.groups.iter().zip(random.elements());
    let element =
        |(group, element): (&crate::symmetry::Group, &Element)| match group.residual && !residual {
            true => Element::default(),
            false => Element {
                angle: if rotations {
                    element.angle.clone()
                } else {
                    Vec::new()
                },
                ..element.clone()
            },
        };
    Transform::new(symmetries, groups.map(element).collect()).expect("still fits")
}

/// A network of one family.
struct Case {
    spec: &'static str,
    config: Value,
    shapes: Vec<(String, Vec<u64>)>,
}

impl Case {
    fn new(spec: &'static str, config: Value, shapes: &[(&str, &[u64])]) -> Self {
        let shapes = shapes
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))
            .collect();
        Self {
            spec,
            config,
            shapes,
        }
    }

    fn mlp(sizes: &[u64]) -> Self {
        let layer = |(at, pair): (usize, &[u64])| {
            let (weight, bias) = (format!("fc{at}.weight"), format!("fc{at}.bias"));
            [(weight, vec![pair[1], pair[0]]), (bias, vec![pair[1]])]
        };
        Self {
            spec: "mlp",
            config: json!({}),
            shapes: sizes.windows(2).enumerate().flat_map(layer).collect(),
        }
    }
}

/// A planted transform and the match that should undo it.
struct Recovered {
    matched: Matched,
    symmetries: Arc<Symmetries>,
    planted: Transform,
}

impl Recovered {
    /// Counts the units that did not return to their places, with signs and angles.
    fn lost(&self) -> usize {
        let both = self
            .planted
            .compose(&self.symmetries, &self.matched.transform);
        let groups = self.symmetries.groups.iter().zip(both.elements());
        let lost = |(group, element): (&crate::symmetry::Group, &Element)| {
            let moved = element
                .permutation
                .iter()
                .enumerate()
                .filter(|(at, unit)| at % group.units != **unit as usize);
            moved.count()
                + element
                    .negative
                    .iter()
                    .filter(|negative| **negative)
                    .count()
        };
        groups.map(lost).sum()
    }
}

/// Plants a transform in a copy of a network, with noise, and matches it back.
fn recover(
    case: &Case,
    factor: f32,
    transform: impl Fn(&Symmetries) -> Transform,
    options: &MatchOptions,
) -> Recovered {
    let original = random(&case.shapes, 5);
    let symmetries = symmetries(case.spec, &original, &case.config);
    let planted = transform(&symmetries);
    let moving = store(&applied(
        &noised(&original, factor, 8),
        &symmetries,
        &planted,
    ));
    let start = Transform::identity(&symmetries);
    let matched = match_weights(
        store(&original).as_ref(),
        &moving,
        &symmetries,
        Start {
            transform: &start,
            steps: &[],
        },
        options,
        &Unwatched,
    );
    Recovered {
        matched: matched.expect("matched"),
        symmetries,
        planted,
    }
}
