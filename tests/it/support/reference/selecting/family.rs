//! The family of differences: thinned out, rescaled, added by weights or by elected signs.

use super::super::vector::sum;
use super::choose::{double_ranks, floor, key_of, number};
use super::{Group, RescaleBy, SignTie, draws};

/// A method of the family.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub sparsifier: Sparsifier,
    /// Whether only differences of the elected sign are added.
    pub elects: bool,
    pub normalize: bool,
    pub rescale: bool,
    pub rescale_floor: f64,
    pub lambda: f64,
    pub parts: Vec<Part>,
}

/// Which elements of a difference are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparsifier {
    All,
    Largest,
    Band,
    Random,
    RandomByRank,
}

/// The parameters of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    pub weight: f64,
    pub density: f64,
    pub epsilon: f64,
    pub gamma: f64,
}

impl Part {
    /// A weight, and all of a model kept.
    pub fn weighing(weight: f64) -> Self {
        Self {
            weight,
            density: 1.0,
            epsilon: 0.15,
            gamma: 0.01,
        }
    }
}

/// The words below 2^32 of so many keep with this probability.
fn below(probability: f64) -> u64 {
    floor(4_294_967_296.0 * probability + 0.5)
}

/// For each element the probability that it had of being kept, if it is kept.
fn kept(group: &Group<'_>, family: &Family, model: usize) -> Vec<Option<f64>> {
    let (part, n) = (family.parts[model], group.len());
    let p = part.density;
    if p >= 1.0 || family.sparsifier == Sparsifier::All {
        return vec![Some(1.0); n];
    }
    if p <= 0.0 {
        return vec![None; n];
    }
    let by_rank = |from: usize, to: usize| {
        let keys: Vec<u32> = group.deltas[model].iter().map(|d| key_of(*d)).collect();
        group.band(&keys, from, to, group.positions[model])
    };
    let count = |share: f64| usize::try_from(floor(share * number(n))).expect("small");
    let flags = match family.sparsifier {
        Sparsifier::All => vec![true; n],
        Sparsifier::Largest => by_rank(n - count(p).max(1), n),
        Sparsifier::Band => {
            let bottom = n.saturating_sub(count(p) + count(part.gamma));
            by_rank(bottom, bottom + count(p))
        }
        Sparsifier::Random => drawn(group, model, &vec![below(p); n]),
        Sparsifier::RandomByRank => {
            let thresholds = thresholds(group, model, p, part.epsilon);
            let own = thresholds.iter().map(|below| {
                f64::from(draws::high(*below)) + f64::from(draws::low(*below)) / 4_294_967_296.0
            });
            let flags = drawn(group, model, &thresholds);
            return own
                .zip(flags)
                .map(|(own, kept)| kept.then_some(own))
                .collect();
        }
    };
    flags.into_iter().map(|kept| kept.then_some(p)).collect()
}

/// Whether the word of each element is below its threshold.
fn drawn(group: &Group<'_>, model: usize, below: &[u64]) -> Vec<bool> {
    let places = group.places();
    let keys: Vec<[u32; 2]> = group
        .pieces
        .iter()
        .map(|piece| draws::key(group.keys.seed, group.positions[model], &piece.name))
        .collect();
    let is_drawn = |((piece, at), below): (&(usize, usize), &u64)| {
        let flat = u64::try_from(group.pieces[*piece].start + at).expect("small");
        u64::from(draws::word(keys[*piece], flat)) < *below
    };
    places.iter().zip(below).map(is_drawn).collect()
}

/// The thresholds of DELLA: they grow with the rank of a magnitude in its row.
fn thresholds(group: &Group<'_>, model: usize, p: f64, epsilon: f64) -> Vec<u64> {
    let (least, span) = (below(p - epsilon), floor(8_589_934_592.0 * epsilon + 0.5));
    let mut rest = group.deltas[model].as_slice();
    let mut found = Vec::new();
    for piece in group.pieces {
        let (own, after) = rest.split_at(piece.base.len());
        rest = after;
        for row in own.chunks(piece.columns) {
            let keys: Vec<u32> = row.iter().map(|d| key_of(*d)).collect();
            let steps = 2 * (u64::try_from(row.len()).expect("small") - 1);
            let at = |rank: u64| match steps {
                0 => below(p),
                _ => least + span * rank / steps,
            };
            found.extend(double_ranks(&keys, group.keys.ties).into_iter().map(at));
        }
    }
    found
}

/// The factors by which the kept elements of a model are multiplied.
fn scales(group: &Group<'_>, family: &Family, model: usize, kept: &[Option<f64>]) -> Vec<f64> {
    let density = family.parts[model].density;
    match group.keys.rescale_by {
        _ if !family.rescale => vec![1.0; kept.len()],
        RescaleBy::Norm => {
            let magnitudes = || group.deltas[model].iter().map(|d| d.abs());
            let all = sum(magnitudes());
            let left = sum(magnitudes()
                .zip(kept)
                .filter(|(_, kept)| kept.is_some())
                .map(|(d, _)| d));
            let tiny = |norm: f64| norm == 0.0 || norm < family.rescale_floor;
            let scale = if tiny(all) || tiny(left) {
                1.0
            } else {
                all / left
            };
            vec![scale; kept.len()]
        }
        RescaleBy::Density => vec![1.0 / density.min(1.0); kept.len()],
        RescaleBy::Probability => kept.iter().map(|own| 1.0 / own.unwrap_or(1.0)).collect(),
    }
}

/// The sign that is elected: 0 for nobody, NaN for NaN. `differences` are the summed ones.
pub fn elected(differences: &[f64], sign_tie: SignTie) -> f64 {
    let total = differences.iter().fold(0.0, |total, v| total + v);
    let size = differences.iter().fold(0.0, |total, v| total + v.abs());
    if total.is_nan() {
        f64::NAN
    } else if sign_tie == SignTie::Zero && total.abs() <= 2f64.powi(-45) * size {
        0.0
    } else if total >= 0.0 {
        1.0
    } else {
        -1.0
    }
}

/// The sign of a difference; 0 for 0.
pub fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

/// The weighted and rescaled differences, a list for each element.
fn values(group: &Group<'_>, family: &Family) -> Vec<Vec<f64>> {
    let models = 0..group.deltas.len();
    let scaled = |model: usize| -> Vec<f64> {
        let kept = kept(group, family, model);
        let scales = scales(group, family, model, &kept);
        let value = |at: usize| match kept[at] {
            Some(_) => family.parts[model].weight * scales[at] * group.deltas[model][at],
            None => 0.0,
        };
        (0..group.len()).map(value).collect()
    };
    let all: Vec<Vec<f64>> = models.map(scaled).collect();
    let element = |at: usize| all.iter().map(|own| own[at]).collect();
    (0..group.len()).map(element).collect()
}

/// What is added to the base.
pub fn merged(group: &Group<'_>, family: &Family) -> Vec<f64> {
    let weight = |model: usize| family.parts[model].weight;
    let element = |values: Vec<f64>| {
        let sign_of_all = elected(&values, group.keys.sign_tie);
        if family.elects && sign_of_all.is_nan() {
            return f64::NAN;
        }
        let agrees = |model: &usize| {
            !family.elects || (values[*model] != 0.0 && sign(values[*model]) == sign_of_all)
        };
        let agreeing: Vec<usize> = (0..values.len()).filter(agrees).collect();
        let added = agreeing
            .iter()
            .fold(0.0, |total, model| total + values[*model]);
        let weights = agreeing
            .iter()
            .fold(0.0, |total, model| total + weight(*model));
        let is_nothing = if family.elects {
            weights == 0.0
        } else {
            weights.abs() < 1e-8
        };
        let divisor = if family.normalize && !is_nothing {
            weights
        } else {
            1.0
        };
        family.lambda * (added / divisor)
    };
    values(group, family).into_iter().map(element).collect()
}

/// The base and what is added to it.
pub fn apply(group: &Group<'_>, family: &Family) -> Vec<f64> {
    let added = merged(group, family);
    group.base.iter().zip(added).map(|(b, d)| b + d).collect()
}

/// What is counted on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// The kept elements of each model.
    pub kept: Vec<usize>,
    /// The elements at which a sign is elected among differences that are not all zero.
    pub elections: usize,
    /// Those of them at which the differences cancel.
    pub undecided: usize,
}

/// What is counted in one group.
pub fn counts(group: &Group<'_>, family: &Family) -> Counts {
    let kept = |model: usize| kept(group, family, model).iter().flatten().count();
    let held: Vec<Vec<f64>> = values(group, family)
        .into_iter()
        .filter(|values| family.elects && values.iter().any(|v| *v != 0.0))
        .collect();
    let cancels = |values: &&Vec<f64>| elected(values, SignTie::Zero) == 0.0;
    Counts {
        kept: (0..group.deltas.len()).map(kept).collect(),
        elections: held.len(),
        undecided: held.iter().filter(cancels).count(),
    }
}
