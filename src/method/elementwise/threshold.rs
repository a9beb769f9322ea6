//! Thresholds: the ranks that selections ask for, and what is kept by the keys found there.

use crate::kernel::select::{Edge, RankDraw, value_of};

use super::histogram::{Histogram, Place, Refinement, Stream};
use super::rule::Keep;
use super::{Elementwise, Model, Select};

/// The number of 32-bit words.
const WORDS: f64 = 4_294_967_296.0;
/// The factor of the quartiles' distance in the threshold of importances.
const FENCE: f64 = 1.5;

/// Finds the thresholds of each stream.
pub(super) fn located(
    method: &Elementwise,
    histogram: &Histogram,
    elements: u64,
) -> Vec<Vec<Place>> {
    let streams = method.streams();
    let ranks = streams.iter().enumerate().map(|(at, stream)| {
        let ranks = match stream {
            Stream::Magnitude(model) => ranks_of(method.models[*model].select, elements),
            Stream::Importance(_) => quartile_ranks(elements),
            Stream::Deviation => {
                let share = method.together.map_or(1.0, |together| together.share);
                let odd = elements - histogram.zeros(at);
                vec![portion(share, odd)]
                    .into_iter()
                    .filter(|rank| *rank > 0)
                    .collect()
            }
        };
        ranks
            .into_iter()
            .map(|rank| histogram.find(at, rank))
            .collect()
    });
    ranks.collect()
}

/// ⌊p n⌋, the product in f64.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a number of elements, truncated as mergekit does"
)]
fn portion(share: f64, elements: u64) -> u64 {
    ((share * elements as f64) as u64).min(elements)
}

/// The ranks, from the largest on, of a selection's thresholds.
fn ranks_of(select: Select, elements: u64) -> Vec<u64> {
    match select {
        _ if elements == 0 => vec![],
        Select::Top { density } => vec![portion(density, elements).max(1)],
        Select::Band { density, gamma } => {
            let (kept, dropped) = (portion(density, elements), portion(gamma, elements));
            // The ranks that count ascend from the smallest; what lies below goes as well.
            let lowest = elements.saturating_sub(kept + dropped);
            let (from, to) = (elements - lowest, (elements - lowest).saturating_sub(kept));
            match (kept, to) {
                (0, _) => vec![],
                (_, 0) => vec![from],
                _ => vec![from, to],
            }
        }
        _ => vec![],
    }
}

/// The ranks, from the largest on, of the quartiles: sorted element ⌊q (n - 1)⌋, counted from the
/// smallest.
fn quartile_ranks(elements: u64) -> Vec<u64> {
    match elements.checked_sub(1) {
        None => vec![],
        Some(last) => [last / 4, last / 2, last / 4 * 3 + last % 4 * 3 / 4]
            .map(|place| elements - place)
            .to_vec(),
    }
}

/// The bins of thresholds that are not found yet.
pub(super) fn unresolved(places: &[Place]) -> Vec<u32> {
    let mut bins: Vec<u32> = places
        .iter()
        .filter_map(|place| match place {
            Place::In { bin, .. } => Some(*bin),
            Place::Edge(_) => None,
        })
        .collect();
    bins.dedup();
    bins
}

pub(super) fn refine(places: &mut [Vec<Place>], refinement: &Refinement, streams: &[Stream]) {
    for (at, places) in places.iter_mut().enumerate().take(streams.len()) {
        for place in places {
            if let Place::In { bin, rank } = *place {
                *place = Place::Edge(refinement.find(at, bin, rank));
            }
        }
    }
}

pub(super) fn edges_of(places: &[Place]) -> Vec<Edge> {
    let edge = |place: &Place| match place {
        Place::Edge(edge) => Some(*edge),
        Place::In { .. } => None,
    };
    places.iter().filter_map(edge).collect()
}

/// Keeps the elements from an edge on; nothing without one.
pub(super) fn top(edges: &[Edge]) -> Keep {
    match edges.first() {
        Some(edge) => Keep::Band {
            low: Some(*edge),
            high: None,
        },
        None => Keep::Nothing,
    }
}

/// The elements of a model that are kept, with the thresholds that were found for it.
pub(super) fn keep(model: &Model, edges: &mut dyn Iterator<Item = Vec<Edge>>) -> Keep {
    match model.select {
        Select::All => Keep::All,
        Select::Nothing => Keep::Nothing,
        Select::Top { .. } => top(&edges.next().unwrap_or_default()),
        Select::Band { .. } => band(&edges.next().unwrap_or_default()),
        Select::Draw { probability } => Keep::Draw {
            below: limit(probability),
        },
        Select::DrawByRank { density, epsilon } => Keep::DrawByRank(RankDraw {
            least: limit(density - epsilon),
            rise: limit(2.0 * epsilon),
            alone: limit(density),
        }),
        Select::Important => match edges.next().as_deref() {
            // From the smallest quartile to the largest.
            Some([q1, q2, q3]) => Keep::Above {
                least: value_of(q2.key) + FENCE * (value_of(q3.key) - value_of(q1.key)),
            },
            _ => Keep::All,
        },
    }
}

/// Keeps the elements between two edges, of which the second is found as that of the elements to
/// drop.
fn band(edges: &[Edge]) -> Keep {
    match edges {
        // One run of tied elements holds both edges.
        [low, high] if low.key == high.key => Keep::Band {
            low: Some(Edge {
                kept: low.kept - high.kept,
                ..*low
            }),
            high: Some(Edge {
                kept: high.of,
                ..*high
            }),
        },
        [low, high] => Keep::Band {
            low: Some(*low),
            high: Some(Edge {
                kept: high.of - high.kept,
                ..*high
            }),
        },
        edges => top(edges),
    }
}

/// ⌊2^32 p + 1/2⌋, the limit of words that come with probability p.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a probability of words"
)]
fn limit(probability: f64) -> u64 {
    (WORDS * probability + 0.5).floor() as u64
}
