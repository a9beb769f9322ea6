//! Sums and counts over the differences of a chunk.

use super::super::lanes::{LANES, Lanes, ROW, Scratch, TILE, flat};
use super::super::level::{Level, Task};
use super::super::simd::Simd;
use super::Deltas;
use super::keys::{deviations, differences, widen};
use super::pick::{Picks, clear};

/// The power of a difference that is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// |δ|.
    One,
    /// δ².
    Two,
}

pub(super) fn kept(
    level: Level,
    deltas: Deltas<'_>,
    picks: Picks<'_, '_>,
    power: Power,
    scratch: &mut Scratch,
    sums: &mut [[f64; 2]],
) {
    let models = deltas.models.len();
    assert_eq!(sums.len(), models, "two sums for each model");
    if let Picks::Each(picks) = &picks {
        assert_eq!(picks.len(), models, "a pick for each model");
    }
    let rows = scratch.rows(Scratch::select_rows(models));
    let (lanes, rows) = rows.split_at_mut(2 * models);
    lanes.fill(Lanes::ZERO);
    level.run(Kept {
        deltas,
        picks,
        power,
        lanes,
        rows,
    });
    for (sums, lanes) in sums.iter_mut().zip(lanes.chunks_exact(2)) {
        for (sum, lanes) in sums.iter_mut().zip(lanes) {
            *sum += lanes.sum();
        }
    }
}

struct Kept<'a, 'p, 't> {
    deltas: Deltas<'a>,
    picks: Picks<'p, 't>,
    power: Power,
    lanes: &'a mut [Lanes],
    rows: &'a mut [Lanes],
}

impl Task for Kept<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let models = self.deltas.models;
        let (shared, rows) = self.rows.split_at_mut(4 * ROW);
        let rows = flat(&mut rows[..models.len() * ROW]);
        let shared = flat(shared);
        let (base, shared) = shared.split_at_mut(TILE);
        let (mask, shared) = shared.split_at_mut(TILE);
        let (sum, deviation) = shared.split_at_mut(TILE);
        let len = self.deltas.base.len();
        for start in (0..len).step_by(TILE) {
            let range = start..len.min(start + TILE);
            let size = range.len();
            widen::<S>(self.deltas.base.slice(range.clone()), base);
            for (model, row) in models.iter().zip(rows.chunks_exact_mut(TILE)) {
                differences::<S>(model.slice(range.clone()), base, &mut row[..size]);
            }
            let mask: &mut [u64] = &mut bytemuck::cast_slice_mut(mask)[..size];
            if let Picks::Together(band) = &mut self.picks {
                deviations(rows, sum, &mut deviation[..size]);
                band.mask(deviation[..size].iter().copied(), mask);
            }
            let lanes = self.lanes.chunks_exact_mut(2);
            for (at, (row, lanes)) in rows.chunks_exact_mut(TILE).zip(lanes).enumerate() {
                let row = &mut row[..size];
                if let Picks::Each(picks) = &mut self.picks {
                    picks[at].mask(start, row, mask);
                }
                let (all, kept) = lanes.split_at_mut(1);
                add(row, self.power, &mut all[0]);
                clear(mask, row);
                add(row, self.power, &mut kept[0]);
            }
        }
    }
}

/// Adds the elements of a tile to the lanes, element `k` to lane `k mod LANES`.
#[inline(always)]
fn add(row: &[f64], power: Power, lanes: &mut Lanes) {
    let (whole, rest) = row.as_chunks::<LANES>();
    match power {
        Power::One => {
            for values in whole {
                for (lane, value) in lanes.0.iter_mut().zip(values) {
                    *lane += value.abs();
                }
            }
            for (lane, value) in lanes.0.iter_mut().zip(rest) {
                *lane += value.abs();
            }
        }
        Power::Two => {
            for values in whole {
                for (lane, value) in lanes.0.iter_mut().zip(values) {
                    *lane += value * value;
                }
            }
            for (lane, value) in lanes.0.iter_mut().zip(rest) {
                *lane += value * value;
            }
        }
    }
}

pub(super) fn count_shared(
    level: Level,
    deltas: Deltas<'_>,
    epsilon: f64,
    scratch: &mut Scratch,
    counts: &mut [[u64; 2]],
) {
    assert_eq!(
        counts.len(),
        deltas.models.len(),
        "two counts for each model"
    );
    let rows = flat(scratch.rows(Scratch::select_rows(deltas.models.len())));
    level.run(CountShared {
        deltas,
        epsilon,
        rows,
        counts,
    });
}

struct CountShared<'a> {
    deltas: Deltas<'a>,
    epsilon: f64,
    rows: &'a mut [f64],
    counts: &'a mut [[u64; 2]],
}

impl Task for CountShared<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let models = self.deltas.models;
        let (base, rows) = self.rows.split_at_mut(TILE);
        let (active, rows) = rows.split_at_mut(TILE);
        let rows = &mut rows[..models.len() * TILE];
        let len = self.deltas.base.len();
        for start in (0..len).step_by(TILE) {
            let range = start..len.min(start + TILE);
            let size = range.len();
            let active = &mut active[..size];
            active.fill(0.0);
            widen::<S>(self.deltas.base.slice(range.clone()), base);
            for (model, row) in models.iter().zip(rows.chunks_exact_mut(TILE)) {
                let row = &mut row[..size];
                differences::<S>(model.slice(range.clone()), base, row);
                for (delta, active) in row.iter_mut().zip(&mut *active) {
                    *delta = activity(*delta, self.epsilon);
                    *active += *delta;
                }
            }
            for (row, counts) in rows.chunks_exact(TILE).zip(self.counts.iter_mut()) {
                let (mut shared, mut unique) = (0, 0);
                for (own, active) in row[..size].iter().zip(&*active) {
                    shared += u64::from(*own == 1.0 && *active > 1.0);
                    unique += u64::from(*own == 1.0 && *active == 1.0);
                }
                counts[0] += shared;
                counts[1] += unique;
            }
        }
    }
}

/// One for a difference beyond `epsilon`, and for NaN; else zero.
#[inline(always)]
pub(super) fn activity(delta: f64, epsilon: f64) -> f64 {
    if delta.abs() <= epsilon { 0.0 } else { 1.0 }
}
