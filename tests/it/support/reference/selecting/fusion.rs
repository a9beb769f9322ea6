//! Arcee Fusion: a model's element where its importance stands out.

use super::super::vector::sum;
use super::Group;
use super::choose::{floor, key_of, number};

/// The choice for one element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fused {
    /// The model's or the base's element.
    pub value: f64,
    /// The other one.
    pub other: f64,
    /// The importance, rounded to f32.
    pub importance: f64,
    /// The threshold of the group.
    pub threshold: f64,
}

/// The probabilities of a row.
fn probabilities(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
    let total = sum(powers.iter().copied());
    powers
        .into_iter()
        .map(|power| power / total + 1e-8)
        .collect()
}

/// The divergence of a model's row from the base's.
fn divergence(model: &[f64], base: &[f64]) -> f64 {
    let (p, q) = (probabilities(model), probabilities(base));
    sum(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln())).max(0.0)
}

/// The importance of each element of the group, rounded.
fn importances(group: &Group<'_>) -> Vec<f64> {
    let mut found = Vec::new();
    for piece in group.pieces {
        for (model, base) in piece.inputs[0]
            .chunks(piece.columns)
            .zip(piece.base.chunks(piece.columns))
        {
            let divergence = divergence(model, base);
            let own = |(x, b): (&f64, &f64)| {
                f64::from(f32::from_bits(key_of((x - b).abs() * divergence)))
            };
            found.extend(model.iter().zip(base).map(own));
        }
    }
    found
}

/// The choice for each element of the group.
pub fn fuse(group: &Group<'_>) -> Vec<Fused> {
    let importances = importances(group);
    let mut sorted = importances.clone();
    sorted.sort_by(f64::total_cmp);
    let quantile =
        |q: f64| sorted[usize::try_from(floor(q * number(sorted.len() - 1))).expect("small")];
    let threshold = quantile(0.5) + 1.5 * (quantile(0.75) - quantile(0.25));
    let inputs = group.pieces.iter().flat_map(|piece| &piece.inputs[0]);
    let choose = |((x, b), importance): ((&f64, &f64), f64)| {
        let (value, other) = if importance >= threshold {
            (*x, *b)
        } else {
            (*b, *x)
        };
        Fused {
            value,
            other,
            importance,
            threshold,
        }
    };
    inputs
        .zip(&group.base)
        .zip(importances)
        .map(choose)
        .collect()
}
