//! Random elements of every group, for tests and planted experiments.

use super::{Element, OrthogonalMap, Transform, number};
use crate::random::SplitMix;
use crate::symmetry::spec::Allowed;
use crate::symmetry::{Group, Symmetries};

impl Transform {
    /// Draws an element of every group; the same seed and groups give the same one on every
    /// machine.
    ///
    /// Orders are uniform (Fisher-Yates), signs fair, angles uniform on the circle. Where a group
    /// allows any orthogonal map, it gets one instead: random rows, orthogonalised one by one
    /// (Gram-Schmidt).
    pub fn random(symmetries: &Symmetries, seed: u64) -> Self {
        let elements = symmetries.groups.iter().enumerate().map(|(index, group)| {
            // Each group has its own random stream, so its element does not depend on earlier
            // groups.
            let state = seed.wrapping_add((index as u64).wrapping_mul(0xd134_2543_de82_ef95));
            let mut random = SplitMix::from_state(state);
            random.next_bits();
            element(group, &mut random)
        });
        Self {
            elements: elements.collect(),
        }
    }
}

fn element(group: &Group, random: &mut SplitMix) -> Element {
    let mut element = Element::default();
    if group.may(Allowed::Orthogonal) {
        return Element {
            map: Some(map(group.units, random)),
            ..element
        };
    }
    for _ in 0..group.copies {
        if group.may(Allowed::Permutation) {
            let mut order: Vec<u32> = (0..group.units).map(number).collect();
            for at in (1..order.len()).rev() {
                order.swap(at, random.below(at + 1));
            }
            element.permutation.extend(order);
        }
        if group.may(Allowed::Sign) {
            element
                .negative
                .extend((0..group.sign_count()).map(|_| random.next_bits() >> 63 == 1));
        }
        if group.may(Allowed::Rotation) {
            element.angle.extend(
                (0..group.pair_count()).map(|_| (random.unit() * 2.0 - 1.0) * std::f64::consts::PI),
            );
        }
    }
    element
}

fn map(size: usize, random: &mut SplitMix) -> OrthogonalMap {
    let dot = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(x, y)| x * y).sum::<f64>();
    let mut elements: Vec<f64> = Vec::with_capacity(size * size);
    while elements.len() < size * size {
        // Sums of four are near enough to normal for the directions to be spread over the whole
        // sphere.
        let mut row: Vec<f64> = (0..size)
            .map(|_| (0..4).map(|_| random.unit() - 0.5).sum::<f64>())
            .collect();
        for _ in 0..2 {
            for before in elements.chunks_exact(size) {
                let share = dot(&row, before);
                row.iter_mut()
                    .zip(before)
                    .for_each(|(x, y)| *x -= share * y);
            }
        }
        let norm = dot(&row, &row).sqrt();
        if norm > 1e-3 {
            elements.extend(row.iter().map(|x| x / norm));
        }
    }
    OrthogonalMap::new(size, elements).expect("made orthogonal twice over")
}
