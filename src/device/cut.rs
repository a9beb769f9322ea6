//! Cuts a sum of products into parts whose factors fit a lane.

use std::ops::Range;

use super::multiplication::{DEPTH, SQUARE};

/// Bytes of an entry.
pub(super) const UNIT: usize = size_of::<f32>();
/// The parts of a lane begin at multiples of this.
pub(super) const ALIGNMENT: usize = 256;
/// The most bytes that the parts of a lane lose by alignment.
const LOST: usize = 3 * ALIGNMENT;
/// A lane that holds a square of entries and [`DEPTH`] terms of their factors.
pub(super) const LEAST_LANE: usize = (2 * DEPTH + SQUARE) * SQUARE * UNIT + LOST + ALIGNMENT;

/// A part of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProductPart {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

/// Cuts a result that stays on the device into parts: the factors of each part, [`DEPTH`] terms at
/// a time, fit a lane.
pub(super) fn there(rows: usize, columns: usize, lane: usize) -> Vec<ProductPart> {
    let both = (lane - LOST) / UNIT / DEPTH;
    let high = even((both / 2).max(both.saturating_sub(columns)), rows);
    parts(rows, columns, high, even(both - high, columns))
}

/// Cuts a result that is carried to the device into parts: the entries of each part fit a lane
/// together with the factors.
pub(super) fn carried(rows: usize, columns: usize, lane: usize) -> Vec<ProductPart> {
    let floats = (lane - LOST) / UNIT;
    let fits = |side: &usize| side * side + 2 * DEPTH * side <= floats;
    let side = (1..)
        .map(|squares| squares * SQUARE)
        .take_while(fits)
        .last()
        .unwrap_or(SQUARE);
    let high = side.min(rows);
    parts(
        rows,
        columns,
        high,
        even((floats - DEPTH * high) / (high + DEPTH), columns),
    )
}

/// Cuts the terms of a part's sums into ranges whose factors fit `room` bytes.
pub(super) fn terms(
    part: &ProductPart,
    depth: usize,
    room: usize,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let most = room.saturating_sub(LOST) / UNIT / (part.rows.len() + part.columns.len()).max(1);
    let step = (most / DEPTH * DEPTH).max(DEPTH);
    (0..depth)
        .step_by(step)
        .map(move |start| start..depth.min(start + step))
}

/// Returns the number of terms brought over at once for a whole result, when the columns of the
/// right factor are reordered on the device, whole rows at a time; `None` when they do not fit.
pub(super) fn gathered_terms(rows: usize, columns: usize, lane: usize) -> Option<usize> {
    let room = lane.checked_sub(LOST + ALIGNMENT + columns * size_of::<u32>())?;
    // The right factor lies there twice.
    let most = room / UNIT / (rows + 2 * columns).max(1) / DEPTH * DEPTH;
    (most > 0).then_some(most)
}

/// Rounds `most` rows or columns down to whole squares, unless all fit at once.
fn even(most: usize, all: usize) -> usize {
    if most >= all {
        all
    } else {
        most / SQUARE * SQUARE
    }
}

fn parts(rows: usize, columns: usize, high: usize, wide: usize) -> Vec<ProductPart> {
    pieces(rows, high)
        .flat_map(|rows| {
            pieces(columns, wide).map(move |columns| ProductPart {
                rows: rows.clone(),
                columns,
            })
        })
        .collect()
}

/// Cuts `all` into pieces of `step`, the last of which may be shorter.
fn pieces(all: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..all).step_by(step.max(1));
    starts.map(move |start| start..all.min(start + step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_result_and_fit_the_lane() {
        let sizes = [1, 2, SQUARE - 1, SQUARE, SQUARE + 1, 1000, 5000];
        for lane in [
            LEAST_LANE,
            LEAST_LANE + ALIGNMENT,
            2 * LEAST_LANE + 12345,
            1 << 22,
            1 << 26,
        ] {
            for (rows, columns) in sizes
                .iter()
                .flat_map(|rows| sizes.map(|columns| (*rows, columns)))
            {
                for (cut, carries) in [
                    (there as fn(usize, usize, usize) -> Vec<ProductPart>, false),
                    (carried, true),
                ] {
                    let parts = cut(rows, columns, lane);
                    let about = format!("{rows} x {columns} in {lane}: {parts:?}");
                    let area: usize = parts
                        .iter()
                        .map(|part| part.rows.len() * part.columns.len())
                        .sum();
                    assert_eq!(area, rows * columns, "{about}");
                    for part in &parts {
                        let up = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
                        let own = if carries {
                            up(part.rows.len() * part.columns.len() * UNIT)
                        } else {
                            0
                        };
                        for depth in [1, DEPTH, 3 * DEPTH + 5] {
                            let terms: Vec<_> = terms(part, depth, lane - own).collect();
                            assert!(
                                terms.iter().all(|terms| terms.start % DEPTH == 0),
                                "{about}"
                            );
                            assert_eq!(
                                terms.iter().map(ExactSizeIterator::len).sum::<usize>(),
                                depth,
                                "{about}"
                            );
                            let factor = |size: usize| up(terms[0].len() * size * UNIT);
                            assert!(
                                own + factor(part.rows.len()) + factor(part.columns.len()) <= lane,
                                "{about}"
                            );
                        }
                    }
                }
            }
        }
    }
}
