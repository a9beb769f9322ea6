//! The sweeps over one group, and the rule that follows from them.

use std::sync::Arc;

use crate::kernel::add_compensated;
use crate::kernel::select::{Mix, MixKind, Power, Share};

use super::histogram::{Histogram, Place, Refinement};
use super::rule::{ElementRule, Keep, KeptModel};
use super::threshold::{edges_of, keep, located, refine, top, unresolved};
use super::{Elementwise, Mixing, Model, Rescale, Select};

/// A kind of sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepKind {
    /// Looks for NaN and infinity only.
    Scan,
    /// Counts keys in bins.
    Histogram,
    /// Counts the keys of single bins; only if a threshold lies in a bin of several keys.
    Refine,
    /// Sums over all and over the kept elements.
    Sums,
    /// Counts elements that several models have changed.
    Shared,
}

/// A sweep over the elements of a group.
#[derive(Debug, Clone)]
pub enum Sweep {
    /// Looks for NaN and infinity only.
    Scan,
    /// Counts keys in bins.
    Histogram(Arc<Histogram>),
    /// Counts the keys of single bins.
    Refine(Arc<Refinement>),
    /// Sums over all and over the kept elements.
    Sums {
        /// The rule as far as it is known, which says what is kept.
        rule: Arc<ElementRule>,
        /// The power that is summed.
        power: Power,
    },
    /// Counts elements that several models have changed.
    Shared {
        /// The magnitude beyond which an element has changed.
        epsilon: f64,
    },
}

/// The sums and counts of a stretch or chunk, two for each model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    /// The number of elements.
    pub elements: u64,
    /// For each chunk and model: the sum over all elements, and over the kept ones.
    pub sums: Vec<[f64; 2]>,
    /// For each model: elements that others have changed too, and that none else has.
    pub shared: Vec<[u64; 2]>,
}

impl Sums {
    /// Appends the sums of the next stretch.
    pub fn append(&mut self, next: Self) {
        self.elements += next.elements;
        self.sums.extend(next.sums);
        self.shared
            .resize(self.shared.len().max(next.shared.len()), [0; 2]);
        for (counts, next) in self.shared.iter_mut().zip(next.shared) {
            counts[0] += next[0];
            counts[1] += next[1];
        }
    }
}

/// A group whose rule is being found.
#[derive(Debug, Clone)]
pub struct Progress {
    /// The sweeps that are still to come, the current one first.
    kinds: Vec<SweepKind>,
    sweep: Sweep,
    elements: u64,
    /// The thresholds of each stream, by what was asked for.
    places: Vec<Vec<Place>>,
    /// Sums over models, each with what its additions have lost.
    sums: Vec<[[f64; 2]; 2]>,
    shared: Vec<[u64; 2]>,
}

/// Compares what was found; two sweeps that are still counted into are not looked at.
impl PartialEq for Progress {
    fn eq(&self, other: &Self) -> bool {
        self.kinds == other.kinds
            && (self.elements, &self.places) == (other.elements, &other.places)
            && (&self.sums, &self.shared) == (&other.sums, &other.shared)
    }
}

impl Progress {
    /// A group of `elements` elements, if that number is known, before its first sweep. If `scanned`
    /// there is a sweep though the method needs none.
    pub fn new(method: &Elementwise, elements: Option<u64>) -> Self {
        let mut kinds = method.sweeps();
        if kinds.is_empty() {
            kinds.push(SweepKind::Scan);
        }
        let models = method.models.len();
        let mut progress = Self {
            kinds,
            sweep: Sweep::Scan,
            elements: 0,
            places: Vec::new(),
            sums: vec![[[0.0; 2]; 2]; models],
            shared: vec![[0; 2]; models],
        };
        progress.begin(method, elements);
        progress
    }

    /// The sweep to make.
    pub fn sweep(&self) -> &Sweep {
        &self.sweep
    }

    /// Tells if the current sweep is the first.
    pub fn is_first(&self, method: &Elementwise) -> bool {
        self.kinds.len() == method.sweeps().len().max(1)
    }

    /// Counts the sweeps that may come after this one.
    pub fn left(&self) -> usize {
        self.kinds.len().saturating_sub(1)
    }

    /// Adds the sums of a stretch; earlier stretches first. `chunks` of them count.
    pub fn fold(&mut self, measured: &Sums) {
        self.elements += measured.elements;
        let models = self.sums.len().max(1);
        for sums in measured.sums.chunks_exact(models) {
            for ([all, kept], next) in self.sums.iter_mut().zip(sums) {
                let ([sum, lost], [sum_kept, lost_kept]) = (all, kept);
                add_compensated(sum, lost, next[0]);
                add_compensated(sum_kept, lost_kept, next[1]);
            }
        }
        for (counts, next) in self.shared.iter_mut().zip(&measured.shared) {
            counts[0] += next[0];
            counts[1] += next[1];
        }
    }

    /// Ends the current sweep; returns the number of sweeps by which the next one comes later in
    /// the method's list, or `None` if the group is measured.
    pub fn advance(&mut self, method: &Elementwise) -> Option<usize> {
        match &self.sweep {
            Sweep::Histogram(histogram) => self.places = located(method, histogram, self.elements),
            Sweep::Refine(refinement) => {
                refine(&mut self.places, refinement, &method.streams());
            }
            Sweep::Scan | Sweep::Sums { .. } | Sweep::Shared { .. } => {}
        }
        let mut steps = 0;
        loop {
            self.kinds.remove(0);
            steps += 1;
            match self.kinds.first() {
                None => return None,
                Some(SweepKind::Refine) if self.is_located() => {}
                Some(_) => break,
            }
        }
        // The elements were counted once.
        self.begin(method, None);
        Some(steps)
    }

    fn is_located(&self) -> bool {
        let edge = |place: &Place| matches!(place, Place::Edge(_));
        self.places.iter().flatten().all(edge)
    }

    fn begin(&mut self, method: &Elementwise, elements: Option<u64>) {
        self.sweep = match self.kinds.first() {
            None | Some(SweepKind::Scan) => Sweep::Scan,
            Some(SweepKind::Histogram) => {
                Sweep::Histogram(Arc::new(Histogram::new(method.streams(), elements)))
            }
            Some(SweepKind::Refine) => {
                let wanted = method.streams().into_iter().zip(&self.places);
                let wanted = wanted.map(|(stream, places)| (stream, unresolved(places)));
                let bins = super::histogram::bins_for(method.streams().len());
                Sweep::Refine(Arc::new(Refinement::new(bins, wanted.collect())))
            }
            Some(SweepKind::Sums) => Sweep::Sums {
                rule: Arc::new(self.rule(method)),
                power: match method.mixing {
                    Mixing::ByEnergy { .. } => Power::Two,
                    _ => Power::One,
                },
            },
            Some(SweepKind::Shared) => Sweep::Shared {
                epsilon: match method.mixing {
                    Mixing::UniqueScaled { epsilon, .. } => epsilon,
                    _ => 0.0,
                },
            },
        };
    }

    /// The rule, by all that was found so far.
    pub fn rule(&self, method: &Elementwise) -> ElementRule {
        let mut edges = self.places.iter().map(|places| edges_of(places));
        let together = method.together.map(|together| match together.share >= 1.0 {
            true => Keep::All,
            false => top(&edges.next().unwrap_or_default()),
        });
        let models: Vec<KeptModel> = method
            .models
            .iter()
            .map(|model| KeptModel {
                input: model.input,
                position: model.position,
                keep: keep(model, &mut edges),
            })
            .collect();
        ElementRule {
            base: method.base,
            models,
            together,
            mix: self.mix(method),
            below_floor: self.is_below_floor(method),
            ties: method.ties,
            seed: method.seed,
        }
    }

    fn mix(&self, method: &Elementwise) -> Mix {
        let mut shares: Vec<Share> = method
            .models
            .iter()
            .enumerate()
            .map(|(at, model)| Share {
                weight: model.weight,
                scale: self.scale(method, at, model),
                by_probability: method.rescale == Rescale::Probability
                    && matches!(model.select, Select::DrawByRank { .. }),
            })
            .collect();
        let kind = match &method.mixing {
            Mixing::Fixed(kind) => kind.clone(),
            Mixing::ByEnergy { floor, sign_tie } => {
                let weights = self.energy_shares(*floor);
                for (share, weight) in shares.iter_mut().zip(weights) {
                    share.weight = weight;
                }
                MixKind::Agreeing {
                    sign_tie: *sign_tie,
                }
            }
            Mixing::UniqueScaled { epsilon, r, alpha } => MixKind::Unique {
                epsilon: *epsilon,
                factors: self.unique_factors(*epsilon, *r, *alpha),
            },
        };
        Mix {
            shares,
            lambda: method.lambda,
            kind,
            consensus: method.consensus.clone(),
        }
    }

    /// The factor that makes up for what a model's selection drops.
    fn scale(&self, method: &Elementwise, at: usize, model: &Model) -> f64 {
        let by_density = match model.select {
            Select::Top { density }
            | Select::Band { density, .. }
            | Select::DrawByRank { density, .. } => 1.0 / density,
            Select::Draw { probability } => 1.0 / probability,
            Select::All | Select::Nothing | Select::Important => 1.0,
        };
        match method.rescale {
            Rescale::No => 1.0,
            Rescale::Density => by_density,
            Rescale::Probability => match model.select {
                Select::DrawByRank { .. } => 1.0,
                _ => by_density,
            },
            Rescale::Norm { .. } if matches!(model.select, Select::All | Select::Nothing) => 1.0,
            Rescale::Norm { floor } => {
                let [all, kept] = self.sums[at].map(|[sum, lost]| sum + lost);
                let is_defined = all > 0.0 && kept > 0.0 && all >= floor && kept >= floor;
                let ratio = all / kept;
                if is_defined && ratio.is_finite() {
                    ratio
                } else {
                    1.0
                }
            }
        }
    }

    /// The mean squares of the kept differences of each model, over all elements of the group.
    fn energies(&self) -> Vec<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a mean over a group")]
        let elements = self.elements.max(1) as f64;
        let sums = self.sums.iter();
        sums.map(|[_, [sum, lost]]| (sum + lost) / elements)
            .collect()
    }

    /// Tells if shares by energy are left out because of the floor, though there are some.
    fn is_below_floor(&self, method: &Elementwise) -> bool {
        let total: f64 = self.energies().iter().sum();
        matches!(method.mixing, Mixing::ByEnergy { floor, .. } if total > 0.0 && total < floor)
    }

    /// The share of each model in the energy of all; the same for all below the floor.
    fn energy_shares(&self, floor: f64) -> Vec<f64> {
        let energies = self.energies();
        let total: f64 = energies.iter().sum();
        if total > 0.0 && total >= floor && total.is_finite() {
            return energies.iter().map(|energy| energy / total).collect();
        }
        #[expect(clippy::cast_precision_loss, reason = "a hundred models at most")]
        let equal = 1.0 / energies.len().max(1) as f64;
        vec![equal; energies.len()]
    }

    fn unique_factors(&self, epsilon: f64, r: f64, alpha: f64) -> Vec<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts")]
        let factor = |[shared, unique]: &[u64; 2]| {
            let ratio = *shared as f64 / (*unique as f64).max(epsilon);
            1.0 + r * ratio.max(0.0).min(alpha)
        };
        self.shared.iter().map(factor).collect()
    }
}
