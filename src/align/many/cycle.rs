//! The cycle error: a test that moving from model to model and back leaves units in their places.

use crate::symmetry::{Element, Symmetries, Transform};

/// Returns the share of units that do not come back to their places, over all triples of different
/// models (a, b, c): moved from a to b, from b to c, and from c back to a. `pairs[to][from]` brings
/// model `from` near to model `to`.
///
/// Transforms that all go through one universe give 0 by construction; those that are found pair by
/// pair need not.
pub fn cycle_error(symmetries: &Symmetries, pairs: &[Vec<Transform>]) -> f64 {
    let count = pairs.len();
    let (mut astray, mut all) = (0_u64, 0_u64);
    for a in 0..count {
        for b in (0..count).filter(|b| *b != a) {
            for c in (0..count).filter(|c| *c != a && *c != b) {
                let round = pairs[b][a]
                    .compose(symmetries, &pairs[c][b])
                    .compose(symmetries, &pairs[a][c]);
                for (group, element) in symmetries.groups.iter().zip(round.elements()) {
                    if group.pairs.is_none() {
                        astray += moved(element, group.units.max(1));
                        all += (group.copies * group.units) as u64;
                    }
                }
            }
        }
    }
    share(astray, all)
}

/// Counts the units that are not in their own places.
fn moved(element: &Element, units: usize) -> u64 {
    element
        .permutation
        .iter()
        .enumerate()
        .filter(|(at, unit)| at % units != **unit as usize)
        .count() as u64
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn share(part: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        part as f64 / all as f64
    }
}

/// Returns the transforms between all pairs of models, through the universe to which `transforms`
/// bring each model.
pub fn through_universe(symmetries: &Symmetries, transforms: &[Transform]) -> Vec<Vec<Transform>> {
    let back: Vec<Transform> = transforms
        .iter()
        .map(|transform| transform.inverse(symmetries))
        .collect();
    back.iter()
        .map(|to| {
            let transforms = transforms.iter();
            transforms
                .map(|from| from.compose(symmetries, to))
                .collect()
        })
        .collect()
}
