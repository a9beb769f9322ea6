//! The tiles of a mix: differences staged, selected and mixed, a loop for each step.

use std::ops::Range;

use super::super::lanes::TILE;
use super::super::simd::Simd;
use super::keys::{deviations, differences, widen};
use super::kinds::{Consensus, Mix, MixCounts, MixKind, Share, SignTie};
use super::pick::{Pick, Picks, clear};
use super::sums::activity;
use super::{Deltas, Elements};

/// A sum this small beside the sum of magnitudes counts as cancelled: 2^-45 of it.
const CANCELLED: f64 = f64::from_bits((1023 - 45) << 52);
/// The least sum of shares that a mix by shares divides by, as in mergekit.
const LEAST_SHARES: f64 = 1e-6;
/// The least magnitude that a step is measured by, as in mergekit.
const LEAST_MAGNITUDE: f64 = 1e-6;
/// The number of 32-bit words.
const WORDS: f64 = 4_294_967_296.0;

/// Tiles of f64.
pub(super) struct Tiles<'a> {
    pub(super) base: &'a mut [f64],
    pub(super) mask: &'a mut [f64],
    /// Σ v_i.
    pub(super) sum: &'a mut [f64],
    /// Σ |v_i|.
    pub(super) size: &'a mut [f64],
    /// The mix.
    pub(super) mixed: &'a mut [f64],
    pub(super) divisor: &'a mut [f64],
    /// The differences of each model, then the v_i.
    pub(super) rows: &'a mut [f64],
}

impl Tiles<'_> {
    /// Loads the base and the differences of a tile.
    #[inline(always)]
    pub(super) fn stage<S: Simd>(
        &mut self,
        deltas: Deltas<'_>,
        range: Range<usize>,
        counts: &mut MixCounts,
    ) {
        let len = range.len();
        widen::<S>(deltas.base.slice(range.clone()), self.base);
        let mut odd = 0.0;
        for base in &self.base[..len] {
            odd += base * 0.0;
        }
        for (model, row) in deltas.models.iter().zip(self.rows.chunks_exact_mut(TILE)) {
            let row = &mut row[..len];
            differences::<S>(model.slice(range.clone()), self.base, row);
            // Zero for every finite difference, and NaN for all others.
            let mut lanes = [0.0; 16];
            let (whole, rest) = row.as_chunks::<16>();
            for values in whole {
                for (lane, value) in lanes.iter_mut().zip(values) {
                    *lane += value * 0.0;
                }
            }
            odd += lanes
                .iter()
                .chain(rest)
                .map(|value| value * 0.0)
                .sum::<f64>();
        }
        counts.finite &= odd == 0.0;
    }

    /// Clears what is not kept, and turns the differences into v_i.
    #[inline(always)]
    pub(super) fn select(
        &mut self,
        picks: &mut Picks<'_, '_>,
        mix: &Mix,
        start: usize,
        len: usize,
        counts: &mut MixCounts,
    ) {
        let mask: &mut [u64] = &mut bytemuck::cast_slice_mut(self.mask)[..len];
        if let Picks::Together(band) = picks {
            deviations(self.rows, self.sum, &mut self.size[..len]);
            band.mask(self.size[..len].iter().copied(), mask);
        }
        let rows = self.rows.chunks_exact_mut(TILE);
        for (model, (row, share)) in rows.zip(&mix.shares).enumerate() {
            let row = &mut row[..len];
            if let Picks::Each(picks) = picks {
                let pick = &mut picks[model];
                pick.mask(start, row, mask);
                counts.kept[model] += match pick {
                    Pick::All => len as u64,
                    _ => clear(mask, row),
                };
                if share.by_probability {
                    divide_by_probability(pick, start, row);
                }
            } else {
                counts.kept[model] += clear(mask, row);
            }
            // The weights of an agreement are not those of the election.
            let factor = share.weight * share.scale;
            if factor != 1.0 && mix.kind.weighs() {
                row.iter_mut().for_each(|delta| *delta *= factor);
            }
        }
    }

    /// Mixes the rows of a tile whose elements are `range`.
    #[inline(always)]
    pub(super) fn mix<S: Simd>(
        &mut self,
        deltas: Deltas<'_>,
        mix: &Mix,
        range: Range<usize>,
        counts: &mut MixCounts,
    ) {
        let len = range.len();
        match &mix.kind {
            MixKind::Sum { divisor } => self.add_up(len, *divisor),
            MixKind::Elect {
                normalize,
                sign_tie,
            } => {
                self.elect(len, *sign_tie, &mix.shares, counts);
                if *normalize {
                    self.normalize(len);
                }
            }
            MixKind::Agreeing { sign_tie } => self.agree(len, *sign_tie, &mix.shares, counts),
            MixKind::Unique { epsilon, factors } => self.unite(len, *epsilon, factors),
            MixKind::Near { t } => self.step(len, *t),
            MixKind::Replace => self.replace::<S>(deltas.models[0].slice(range.clone())),
        }
        if let Some(consensus) = &mix.consensus {
            self.localize::<S>(deltas, range, consensus, mix.lambda);
        }
    }

    /// Σ v_i / `divisor`.
    #[inline(always)]
    fn add_up(&mut self, len: usize, divisor: f64) {
        let mixed = &mut self.mixed[..len];
        mixed.fill(0.0);
        for row in self.rows.chunks_exact(TILE) {
            for (mixed, value) in mixed.iter_mut().zip(row) {
                *mixed += value;
            }
        }
        if divisor != 1.0 {
            mixed.iter_mut().for_each(|mixed| *mixed /= divisor);
        }
    }

    /// Writes Σ v_i and Σ |v_i|, and turns the second into a mark: not zero where a sign is
    /// elected.
    #[inline(always)]
    fn count_votes(&mut self, len: usize, sign_tie: SignTie, counts: &mut MixCounts) {
        let (sum, size) = (&mut self.sum[..len], &mut self.size[..len]);
        sum.fill(0.0);
        size.fill(0.0);
        for row in self.rows.chunks_exact(TILE) {
            for ((sum, size), value) in sum.iter_mut().zip(&mut *size).zip(row) {
                *sum += value;
                *size += value.abs();
            }
        }
        let (mut elections, mut undecided) = (0, 0);
        for (sum, size) in sum.iter().zip(size) {
            let cancels = sum.abs() <= CANCELLED * *size;
            elections += u64::from(*size > 0.0);
            undecided += u64::from((*size > 0.0) & cancels);
            let elects = (sign_tie == SignTie::Plus) | !cancels;
            *size = if elects { 1.0 } else { 0.0 };
        }
        counts.elections += elections;
        counts.undecided += undecided;
    }

    /// Writes Σ v_i over the models that agree with the sign of Σ v_i, and the sum of their
    /// weights.
    #[inline(always)]
    fn elect(&mut self, len: usize, sign_tie: SignTie, shares: &[Share], counts: &mut MixCounts) {
        self.count_votes(len, sign_tie, counts);
        let (mixed, divisor) = (&mut self.mixed[..len], &mut self.divisor[..len]);
        mixed.fill(0.0);
        divisor.fill(0.0);
        for (row, share) in self.rows.chunks_exact(TILE).zip(shares) {
            let votes = self.sum.iter().zip(&*self.size);
            for (((mixed, divisor), value), (sum, elects)) in
                mixed.iter_mut().zip(&mut *divisor).zip(row).zip(votes)
            {
                let agrees = agrees(*value, *sum) & (*elects != 0.0);
                *mixed += if agrees { *value } else { 0.0 };
                *divisor += if agrees { share.weight } else { 0.0 };
            }
        }
        for (mixed, sum) in mixed.iter_mut().zip(&*self.sum) {
            // NaN agrees with nobody.
            *mixed = if sum.is_nan() { *sum } else { *mixed };
        }
    }

    /// Divides the mix by the sum of weights; a sum of zero counts as one.
    #[inline(always)]
    fn normalize(&mut self, len: usize) {
        for (mixed, divisor) in self.mixed[..len].iter_mut().zip(&*self.divisor) {
            *mixed /= if *divisor == 0.0 { 1.0 } else { *divisor };
        }
    }

    /// Weighs the differences that agree, after the election, and divides by their weights.
    #[inline(always)]
    fn agree(&mut self, len: usize, sign_tie: SignTie, shares: &[Share], counts: &mut MixCounts) {
        self.count_votes(len, sign_tie, counts);
        let (mixed, divisor) = (&mut self.mixed[..len], &mut self.divisor[..len]);
        mixed.fill(0.0);
        divisor.fill(0.0);
        for (row, share) in self.rows.chunks_exact(TILE).zip(shares) {
            let votes = self.sum.iter().zip(&*self.size);
            for (((mixed, divisor), value), (sum, elects)) in
                mixed.iter_mut().zip(&mut *divisor).zip(row).zip(votes)
            {
                let weight = if agrees(*value, *sum) & (*elects != 0.0) {
                    share.weight
                } else {
                    0.0
                };
                *mixed += if weight == 0.0 { 0.0 } else { weight * *value };
                *divisor += weight;
            }
        }
        for ((mixed, divisor), sum) in mixed.iter_mut().zip(divisor).zip(&*self.sum) {
            let share = *mixed
                / if *divisor < LEAST_SHARES {
                    LEAST_SHARES
                } else {
                    *divisor
                };
            *mixed = if sum.is_nan() { *sum } else { share };
        }
    }

    /// Takes the only active difference times its factor, or the mean of several.
    #[inline(always)]
    fn unite(&mut self, len: usize, epsilon: f64, factors: &[f64]) {
        let (mixed, active, sum) = (
            &mut self.mixed[..len],
            &mut self.divisor[..len],
            &mut self.sum[..len],
        );
        mixed.fill(0.0);
        active.fill(0.0);
        sum.fill(0.0);
        for (row, factor) in self.rows.chunks_exact(TILE).zip(factors) {
            for (((mixed, active), sum), delta) in
                mixed.iter_mut().zip(&mut *active).zip(&mut *sum).zip(row)
            {
                let is_active = activity(*delta, epsilon);
                let delta = if is_active == 0.0 { 0.0 } else { *delta };
                *active += is_active;
                *sum += delta;
                *mixed += factor * delta;
            }
        }
        for ((mixed, active), sum) in mixed.iter_mut().zip(active).zip(sum) {
            *mixed = if *active > 1.0 {
                *sum / *active
            } else {
                *mixed
            };
        }
    }

    /// u δ of one model.
    #[inline(always)]
    fn step(&mut self, len: usize, t: f64) {
        for (mixed, delta) in self.mixed[..len].iter_mut().zip(&*self.rows) {
            let size = delta.abs();
            let size = if size < LEAST_MAGNITUDE {
                LEAST_MAGNITUDE
            } else {
                size
            };
            let u = t / size;
            let u = if u < 0.0 { 0.0 } else { u };
            *mixed = if u > 1.0 { *delta } else { u * *delta };
        }
    }

    /// The model's elements where the mask keeps them, the base's elsewhere.
    #[inline(always)]
    fn replace<S: Simd>(&mut self, model: Elements<'_>) {
        let mixed = &mut self.mixed[..model.len()];
        widen::<S>(model, mixed);
        let mask: &[u64] = bytemuck::cast_slice(self.mask);
        for ((mixed, mask), base) in mixed.iter_mut().zip(mask).zip(&*self.base) {
            *mixed = if *mask == 0 { *base } else { *mixed };
        }
    }

    /// Clears the mix where too few models agree with it.
    #[inline(always)]
    fn localize<S: Simd>(
        &mut self,
        deltas: Deltas<'_>,
        range: Range<usize>,
        consensus: &Consensus,
        lambda: f64,
    ) {
        let (agreed, delta) = (
            &mut self.divisor[..range.len()],
            &mut self.sum[..range.len()],
        );
        agreed.fill(0.0);
        for (model, tall) in deltas.models.iter().zip(&consensus.tall) {
            differences::<S>(model.slice(range.clone()), self.base, delta);
            for ((agreed, delta), mixed) in agreed.iter_mut().zip(&*delta).zip(&*self.mixed) {
                let differs = delta.abs() > tall * (lambda * mixed - delta).abs();
                *agreed += if differs { 1.0 } else { 0.0 };
            }
        }
        let fewest = f64::from(consensus.agree);
        for (mixed, agreed) in self.mixed.iter_mut().zip(agreed) {
            *mixed = if *agreed < fewest { 0.0 } else { *mixed };
        }
    }
}

/// Tells if a value has the sign of a sum, where a sum of zero counts as positive; a value of zero
/// has none.
#[inline(always)]
fn agrees(value: f64, sum: f64) -> bool {
    if sum >= 0.0 { value > 0.0 } else { value < 0.0 }
}

/// Divides each element by its probability of being kept.
#[inline(always)]
fn divide_by_probability(pick: &Pick<'_>, start: usize, row: &mut [f64]) {
    if let Pick::DrawBelow { below, .. } = pick {
        for (delta, below) in row.iter_mut().zip(&below[start..]) {
            // An element without a chance was not kept.
            let factor = if *below == 0 {
                0.0
            } else {
                WORDS / f64::from(*below)
            };
            *delta *= factor;
        }
    }
}
