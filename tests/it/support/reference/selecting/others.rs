//! Nearswap, RAM, RAM+, SCE and the consensus of masks.

use super::super::vector::sum;
use super::choose::{floor, key_of, number};
use super::family::{Family, elected, merged, sign};
use super::{Group, NO_MODEL};

/// `b + u δ`, where `u` is larger the nearer the model is.
pub fn nearswap(group: &Group<'_>, t: f64) -> Vec<f64> {
    let near = |(b, d): (&f64, &f64)| b + (t / d.abs().max(1e-6)).clamp(0.0, 1.0) * d;
    group.base.iter().zip(&group.deltas[0]).map(near).collect()
}

/// Means of the changes over those who changed an element; what one alone changed is multiplied by
/// a factor that grows with what it shares, when `plus` has the factor's step and limit.
pub fn ram(group: &Group<'_>, epsilon: f64, plus: Option<(f64, f64)>) -> Vec<f64> {
    let changed = |model: usize, at: usize| {
        let d = group.deltas[model][at];
        d.abs() > epsilon || d.is_nan()
    };
    let models = 0..group.deltas.len();
    let count = |at: usize| models.clone().filter(|model| changed(*model, at)).count();
    let counts: Vec<usize> = (0..group.len()).map(count).collect();
    let factor = |model: usize| {
        let Some((r, alpha)) = plus else { return 1.0 };
        let own = |at: &usize| changed(model, *at);
        let unique = (0..group.len()).filter(own).filter(|at| counts[*at] == 1);
        let shared = (0..group.len()).filter(own).filter(|at| counts[*at] > 1);
        let overlap = number(shared.count()) / number(unique.count()).max(epsilon);
        1.0 + r * overlap.clamp(0.0, alpha)
    };
    let factors: Vec<f64> = models.clone().map(factor).collect();
    let element = |at: usize| {
        let own = models.clone().filter(|model| changed(*model, at));
        let added = match counts[at] {
            0 => 0.0,
            1 => own.fold(0.0, |total, model| {
                total + factors[model] * group.deltas[model][at]
            }),
            several => {
                own.fold(0.0, |total, model| total + group.deltas[model][at]) / number(several)
            }
        };
        group.base[at] + added
    };
    (0..group.len()).map(element).collect()
}

/// Selects by variance, weighs by energy, erases what has not the sign of the sum.
pub fn sce(group: &Group<'_>, select_topk: f64, weight_floor: f64) -> Vec<f64> {
    let models = 0..group.deltas.len();
    let all = number(group.deltas.len());
    let total = |at: usize| {
        models
            .clone()
            .fold(0.0, |total, model| total + group.deltas[model][at])
    };
    let variance = |at: usize| {
        let about = total(at);
        models.clone().fold(0.0, |variance, model| {
            variance + (all * group.deltas[model][at] - about).powi(2)
        })
    };
    let variances: Vec<f64> = (0..group.len()).map(variance).collect();
    let selected = if select_topk >= 1.0 {
        vec![true; group.len()]
    } else {
        let keys: Vec<u32> = variances
            .iter()
            .map(|variance| key_of(variance.sqrt()))
            .collect();
        let nonzero = keys.iter().filter(|key| **key != 0).count();
        let count = usize::try_from(floor(select_topk * number(nonzero))).expect("small");
        group.band(&keys, group.len() - count, group.len(), NO_MODEL)
    };
    let delta = |model: usize, at: usize| {
        if selected[at] {
            group.deltas[model][at]
        } else {
            0.0
        }
    };
    let energy = |model: usize| {
        sum((0..group.len()).map(|at| delta(model, at).powi(2))) / number(group.len())
    };
    let energies: Vec<f64> = models.clone().map(energy).collect();
    let together = sum(energies.iter().copied());
    let share = |energy: &f64| {
        if together == 0.0 || together < weight_floor {
            1.0 / all
        } else {
            energy / together
        }
    };
    let weights: Vec<f64> = energies.iter().map(share).collect();
    let element = |at: usize| {
        let values: Vec<f64> = models.clone().map(|model| delta(model, at)).collect();
        let elected = elected(&values, group.keys.sign_tie);
        if elected.is_nan() {
            return f64::NAN;
        }
        let agreeing = || {
            models
                .clone()
                .filter(|model| values[*model] != 0.0 && sign(values[*model]) == elected)
        };
        let added = agreeing().fold(0.0, |total, model| total + weights[model] * values[model]);
        let divisor = agreeing().fold(0.0, |total, model| total + weights[model]);
        group.base[at] + added / f64::max(divisor, 1e-6)
    };
    (0..group.len()).map(element).collect()
}

/// A merged difference where enough models are behind it.
pub fn consensus(
    group: &Group<'_>,
    family: &Family,
    tall_lambda: &[f64],
    agree: usize,
) -> Vec<f64> {
    let element = |(at, merged): (usize, f64)| {
        let is_behind = |model: &usize| {
            let own = group.deltas[*model][at];
            own.abs() > tall_lambda[*model] * (merged - own).abs()
        };
        let behind = (0..group.deltas.len()).filter(is_behind).count();
        if merged.is_nan() || behind >= agree {
            group.base[at] + merged
        } else {
            group.base[at]
        }
    };
    merged(group, family)
        .into_iter()
        .enumerate()
        .map(element)
        .collect()
}
