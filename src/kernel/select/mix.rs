//! The output from the kept differences.

use super::super::combine::narrow;
use super::super::lanes::{OTHER_TILES, Scratch, TILE, flat};
use super::super::level::{Level, Task};
use super::super::simd::Simd;
use super::kinds::{Mix, MixCounts, MixKind};
use super::pick::Picks;
use super::tiles::Tiles;
use super::{Combined, Deltas, Mixing, Output};

pub(super) fn mix(
    level: Level,
    mixing: Mixing<'_, '_, '_>,
    scratch: &mut Scratch,
    counts: &mut MixCounts,
) -> Combined {
    let Mixing {
        deltas,
        picks,
        mix,
        output: dst,
    } = mixing;
    let models = deltas.models.len();
    assert_eq!(mix.shares.len(), models, "a share for each model");
    assert_eq!(counts.kept.len(), models, "a count for each model");
    if let Picks::Each(picks) = &picks {
        assert_eq!(picks.len(), models, "a pick for each model");
    }
    let rows = flat(scratch.rows(Scratch::select_rows(models)));
    let (tiles, rows) = rows.split_at_mut(OTHER_TILES * TILE);
    let mut tiles = tiles.chunks_exact_mut(TILE);
    let mut tile = || tiles.next().expect("a tile for each");
    level.run(MixTask {
        deltas,
        picks,
        mix,
        tiles: Tiles {
            base: tile(),
            mask: tile(),
            sum: tile(),
            size: tile(),
            mixed: tile(),
            divisor: tile(),
            rows: &mut rows[..models * TILE],
        },
        dst,
        counts,
    })
}

struct MixTask<'a, 'p, 't> {
    deltas: Deltas<'a>,
    picks: Picks<'p, 't>,
    mix: &'a Mix,
    tiles: Tiles<'a>,
    dst: Output<'a>,
    counts: &'a mut MixCounts,
}

impl Task for MixTask<'_, '_, '_> {
    type Output = Combined;

    #[inline(always)]
    fn run<S: Simd>(mut self) -> Combined {
        let size = self.dst.dtype.bytes();
        let mut found = Combined::PLAIN;
        for (tile, dst) in self.dst.bytes.chunks_mut(TILE * size).enumerate() {
            let start = tile * TILE;
            let len = dst.len() / size;
            self.tiles
                .stage::<S>(self.deltas, start..start + len, self.counts);
            self.tiles
                .select(&mut self.picks, self.mix, start, len, self.counts);
            self.tiles
                .mix::<S>(self.deltas, self.mix, start..start + len, self.counts);
            let changes = &mut self.tiles.mixed[..len];
            if self.mix.kind != MixKind::Replace {
                add_base(changes, self.tiles.base, self.mix.lambda);
            }
            found = found.and(narrow::<S>(self.dst.dtype, changes, dst));
        }
        found
    }
}

/// Turns each mix into an element: the base, unless λ times the mix is not zero.
#[inline(always)]
fn add_base(mixed: &mut [f64], base: &[f64], lambda: f64) {
    for (mixed, base) in mixed.iter_mut().zip(base) {
        let change = lambda * *mixed;
        // A base of -0 stays as it is.
        *mixed = if change == 0.0 { *base } else { base + change };
    }
}
