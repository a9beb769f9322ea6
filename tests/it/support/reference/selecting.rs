//! Methods that work on each element of the differences from a base: whole tensors in memory,
//! full sorts, sums compensated.

pub mod choose;
pub mod draws;
mod family;
mod fusion;
mod others;

use std::collections::BTreeMap;

use super::{Format, Granularity, Model};
use choose::Tied;
pub use choose::Ties;
pub use family::{Counts, Family, Part, Sparsifier};
pub use fusion::Fused;

/// The sign elected where differences cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignTie {
    /// Plus.
    Plus,
    /// None: no difference is added.
    Zero,
}

/// A rescaling's divisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RescaleBy {
    /// The share of the L1 norm of the whole group that is kept.
    Norm,
    /// The density.
    Density,
    /// The probability of each element.
    Probability,
}

/// A method with its parameters for one group of elements. Lists have an entry for each model but
/// the base.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// TIES, DARE, DELLA, breadcrumbs, task arithmetic.
    Family(Family),
    /// Towards a model where it lies near.
    Nearswap { t: f64 },
    /// Means of what several models changed.
    Ram { epsilon: f64 },
    /// The same with more of what one alone changed.
    RamPlus { r: f64, alpha: f64, epsilon: f64 },
    /// Select, calculate, erase.
    Sce { select_topk: f64, weight_floor: f64 },
    /// A model's elements that matter much.
    Fusion,
    /// What at least `agree` models want of a merged difference.
    Consensus {
        merged: Family,
        tall_lambda: Vec<f64>,
        agree: usize,
    },
}

/// The keys of a recipe that the methods share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keys {
    pub seed: u64,
    pub ties: Ties,
    pub sign_tie: SignTie,
    pub rescale_by: RescaleBy,
    pub granularity: Granularity,
}

impl Keys {
    /// What holds when a recipe says nothing.
    pub const USUAL: Self = Self {
        seed: 0,
        ties: Ties::Spread,
        sign_tie: SignTie::Plus,
        rescale_by: RescaleBy::Norm,
        granularity: Granularity::Tensor,
    };
}

/// Part of one tensor: of consecutive elements from the flat index `start` on.
struct Piece {
    name: String,
    start: usize,
    /// The number of the row that it is, when thresholds are taken by rows.
    row: u32,
    columns: usize,
    base: Vec<f64>,
    /// One list a model but the base.
    inputs: Vec<Vec<f64>>,
}

/// The elements over which one threshold, norm or count is taken.
struct Group<'a> {
    keys: Keys,
    pieces: &'a [Piece],
    /// Places of the models but the base among all of the recipe.
    positions: &'a [u32],
    base: Vec<f64>,
    /// Differences from the base, one list a model.
    deltas: Vec<Vec<f64>>,
}

/// The place in place of a model's for the choice among equal variances.
const NO_MODEL: u32 = u32::MAX;

impl<'a> Group<'a> {
    fn new(keys: Keys, pieces: &'a [Piece], positions: &'a [u32]) -> Self {
        let base: Vec<f64> = pieces
            .iter()
            .flat_map(|piece| &piece.base)
            .copied()
            .collect();
        let delta = |model: usize| {
            let inputs = pieces.iter().flat_map(|piece| &piece.inputs[model]);
            inputs.zip(&base).map(|(x, b)| x - b).collect()
        };
        let deltas = (0..positions.len()).map(delta).collect();
        Self {
            keys,
            pieces,
            positions,
            base,
            deltas,
        }
    }

    fn len(&self) -> usize {
        self.base.len()
    }

    /// For each element of the group the piece that it lies in and its place there.
    fn places(&self) -> Vec<(usize, usize)> {
        let of = |(piece, own): (usize, &Piece)| (0..own.base.len()).map(move |at| (piece, at));
        self.pieces.iter().enumerate().flat_map(of).collect()
    }

    /// The band `from..to` of ascending ranks of `keys`, with the rule for equal ones.
    fn band(&self, keys: &[u32], from: usize, to: usize, position: u32) -> Vec<bool> {
        choose::band(keys, from, to, |run, kept| self.chosen(run, kept, position))
    }

    /// Which of a run of equal elements are kept, `kept` if all lie in one tensor. Over the model
    /// every tensor counts its own; what would be kept beyond its last one is not there.
    fn chosen(&self, run: &[usize], kept: usize, position: u32) -> Vec<usize> {
        if self.keys.ties == Ties::First {
            return run[..kept].to_vec();
        }
        let wide = |count: usize| u64::try_from(count).expect("small");
        let tied = Tied {
            kept: wide(kept),
            of: wide(run.len()),
        };
        let mut chosen = Vec::new();
        let mut from = 0;
        for piece in self.pieces {
            let to = from + piece.base.len();
            let own: Vec<usize> = run
                .iter()
                .copied()
                .filter(|at| (from..to).contains(at))
                .collect();
            from = to;
            let key = draws::key(self.keys.seed, position, &piece.name);
            let words = |group| choose::tie_words(key, group, piece.row);
            let is_kept = |nth: usize| choose::is_spread(wide(nth), tied, words);
            let kept = own.iter().enumerate().filter(|(nth, _)| is_kept(*nth));
            chosen.extend(kept.map(|(_, at)| *at));
        }
        chosen
    }
}

/// The merge of `models`, not rounded. `base` is the place of the base among them; `method` gives
/// the method of each tensor for those models that have it, which over the model is the same for
/// all.
pub fn merge_elements(
    models: &[Model],
    base: usize,
    keys: Keys,
    method: &dyn Fn(&str) -> Method,
) -> BTreeMap<String, Vec<f64>> {
    let mut merged = BTreeMap::new();
    let (mut whole, mut all) = (Vec::new(), Vec::new());
    for (name, tensor) in &models[base] {
        if Format::of(tensor.dtype).is_none() {
            continue;
        }
        let out: &mut Vec<f64> = merged.entry(name.clone()).or_default();
        let others: Vec<usize> = (0..models.len())
            .filter(|at| *at != base && models[*at].contains_key(name))
            .collect();
        let positions: Vec<u32> = others
            .iter()
            .map(|at| u32::try_from(*at).expect("few models"))
            .collect();
        for piece in pieces(models, base, &others, keys.granularity, name) {
            if keys.granularity == Granularity::Model {
                all.clone_from(&positions);
                whole.push(piece);
            } else {
                let pieces = [piece];
                out.extend(apply(&Group::new(keys, &pieces, &positions), &method(name)));
            }
        }
    }
    if let Some(first) = whole.first() {
        let values = apply(&Group::new(keys, &whole, &all), &method(&first.name));
        let mut rest = values.as_slice();
        for piece in &whole {
            let (own, after) = rest.split_at(piece.base.len());
            merged.insert(piece.name.clone(), own.to_vec());
            rest = after;
        }
    }
    merged
}

/// The tensor of this name in whole, or its rows.
fn pieces(
    models: &[Model],
    base: usize,
    others: &[usize],
    granularity: Granularity,
    name: &str,
) -> Vec<Piece> {
    let tensor = &models[base][name];
    let rows = match granularity {
        Granularity::Row => tensor.rows(),
        Granularity::Tensor | Granularity::Model => 1,
    };
    let length = tensor.values.len() / rows.max(1);
    let piece = |row: usize| {
        let (from, to) = (row * length, (row + 1) * length);
        let own = |model: usize| models[model][name].values[from..to].to_vec();
        Piece {
            name: name.to_owned(),
            start: from,
            row: u32::try_from(row).expect("few rows"),
            columns: tensor.shape.last().copied().unwrap_or(1),
            base: own(base),
            inputs: others.iter().map(|at| own(*at)).collect(),
        }
    };
    if length == 0 {
        return vec![];
    }
    (0..rows).map(piece).collect()
}

fn apply(group: &Group<'_>, method: &Method) -> Vec<f64> {
    match method {
        Method::Family(family) => family::apply(group, family),
        Method::Nearswap { t } => others::nearswap(group, *t),
        Method::Ram { epsilon } => others::ram(group, *epsilon, None),
        Method::RamPlus { r, alpha, epsilon } => others::ram(group, *epsilon, Some((*r, *alpha))),
        Method::Sce {
            select_topk,
            weight_floor,
        } => others::sce(group, *select_topk, *weight_floor),
        Method::Fusion => fusion::fuse(group)
            .into_iter()
            .map(|own| own.value)
            .collect(),
        Method::Consensus {
            merged,
            tall_lambda,
            agree,
        } => others::consensus(group, merged, tall_lambda, *agree),
    }
}

/// What is counted while a tensor is merged, over its groups.
pub fn counts(models: &[Model], base: usize, keys: Keys, family: &Family, name: &str) -> Counts {
    let others: Vec<usize> = (0..models.len()).filter(|at| *at != base).collect();
    let positions: Vec<u32> = others
        .iter()
        .map(|at| u32::try_from(*at).expect("few models"))
        .collect();
    let mut all = Counts {
        kept: vec![0; others.len()],
        ..Counts::default()
    };
    for piece in pieces(models, base, &others, keys.granularity, name) {
        let own = family::counts(&Group::new(keys, &[piece], &positions), family);
        for (kept, own) in all.kept.iter_mut().zip(own.kept) {
            *kept += own;
        }
        all.elections += own.elections;
        all.undecided += own.undecided;
    }
    all
}

/// What Arcee Fusion says of each element.
pub fn fused(
    models: &[Model],
    base: usize,
    granularity: Granularity,
) -> BTreeMap<String, Vec<Fused>> {
    let keys = Keys {
        granularity,
        ..Keys::USUAL
    };
    let names = models[base].keys();
    let all: Vec<Piece> = names
        .flat_map(|name| pieces(models, base, &[1 - base], granularity, name))
        .collect();
    let groups: Vec<&[Piece]> = match granularity {
        Granularity::Model => vec![&all],
        Granularity::Tensor | Granularity::Row => all.chunks(1).collect(),
    };
    let mut found: BTreeMap<String, Vec<Fused>> = BTreeMap::new();
    for group in groups {
        let mut choices = fusion::fuse(&Group::new(keys, group, &[0])).into_iter();
        for piece in group {
            let own = choices.by_ref().take(piece.base.len());
            found.entry(piece.name.clone()).or_default().extend(own);
        }
    }
    found
}

#[cfg(test)]
mod tests;
