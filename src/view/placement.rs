//! The placement of a stored tensor in an output tensor of the same rank and other sizes.

use std::ops::Range;

use crate::error::Result;

/// The largest piece that joins several runs in one read, in bytes.
pub const PIECE_BYTES: u64 = 256 << 10;
/// The gap between two runs, in bytes, above which two reads are cheaper than one.
const GAP_BYTES: u64 = 16 << 10;

/// The placement of a stored tensor in a wide one; both begin at the same corner. Elements of the
/// stored tensor beyond the kept part of an axis are dropped; elements of the wide tensor there
/// come from elsewhere.
///
/// Kept elements are numbered in their order, which is the same in both tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The axes, outermost first. An axis with the same size in all three tensors is joined with
    /// the one before it.
    axes: Vec<Axis>,
}

/// The size and stride of an axis: in the stored tensor, in the wide tensor, and among the kept
/// elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    stored: Steps,
    wide: Steps,
    kept: Steps,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Steps {
    size: u64,
    stride: u64,
}

/// Elements that are consecutive in both tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CopyRun {
    wide: u64,
    stored: u64,
    len: u64,
}

impl Placement {
    /// Places a tensor of shape `stored` in one of shape `wide`, and keeps the elements within
    /// `common`. `None` when the kept elements are the start of the stored tensor and all of the
    /// wide one, so nothing has to move.
    pub fn new(stored: &[u64], common: &[u64], wide: &[u64]) -> Option<Self> {
        let mut sizes: Vec<[u64; 3]> = Vec::new();
        for ((&stored, &common), &wide) in stored.iter().zip(common).zip(wide) {
            let size = [stored, wide, stored.min(common)];
            match sizes.last_mut() {
                Some(outer) if size == [stored; 3] => {
                    outer.iter_mut().for_each(|outer| *outer *= stored)
                }
                _ => sizes.push(size),
            }
        }
        let is_whole = |[_, wide, kept]: &[u64; 3]| wide == kept;
        if sizes.len() <= 1 && sizes.first().is_none_or(is_whole) {
            return None;
        }
        let mut strides = [1; 3];
        let mut axes = Vec::with_capacity(sizes.len());
        for [stored, wide, kept] in sizes.into_iter().rev() {
            axes.push(Axis {
                stored: Steps {
                    size: stored,
                    stride: strides[0],
                },
                wide: Steps {
                    size: wide,
                    stride: strides[1],
                },
                kept: Steps {
                    size: kept,
                    stride: strides[2],
                },
            });
            strides = [strides[0] * stored, strides[1] * wide, strides[2] * kept];
        }
        axes.reverse();
        Some(Self { axes })
    }

    /// True if the wide tensor has elements that the stored one lacks.
    pub fn lacks_some(&self) -> bool {
        self.axes.iter().any(|axis| axis.kept.size < axis.wide.size)
    }

    /// Counts the kept elements among the `len` elements of the wide tensor from `start` on.
    pub fn count(&self, start: u64, len: u64) -> u64 {
        self.kept_before(start + len) - self.kept_before(start)
    }

    /// Returns the span of the stored tensor's elements that lie among the `len` elements from
    /// `start` on.
    pub fn range(&self, start: u64, len: u64) -> Range<u64> {
        let kept = self.kept_before(start)..self.kept_before(start + len);
        if kept.is_empty() {
            return 0..0;
        }
        self.places(kept.start).1..self.places(kept.end - 1).1 + 1
    }

    /// Divides the kept elements among the `len` from `start` on into pieces, one read each, and
    /// calls `bring` for each. A piece has the span to read from the stored tensor and the places
    /// of its runs.
    ///
    /// A piece of several runs spans at most [`PIECE_BYTES`], with `unit` bytes per element.
    ///
    /// # Errors
    ///
    /// Those of `bring`.
    pub fn pieces(
        &self,
        start: u64,
        len: u64,
        unit: usize,
        bring: &mut dyn FnMut(&Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        let (mut at, end) = (self.kept_before(start), self.kept_before(start + len));
        while at < end {
            let until = self.piece_end(at, end, unit as u64);
            bring(&Piece {
                placement: self,
                kept: at..until,
                start,
            })?;
            at = until;
        }
        Ok(())
    }

    /// Finds the end of the piece that begins with the kept element `at`.
    fn piece_end(&self, at: u64, end: u64, unit: u64) -> u64 {
        let first = self.run(at, end);
        let (mut until, mut stored) = (at + first.len, first.stored + first.len);
        while until < end {
            let next = self.run(until, end);
            let span = next.stored + next.len - first.stored;
            if span * unit > PIECE_BYTES || (next.stored - stored) * unit > GAP_BYTES {
                break;
            }
            (until, stored) = (until + next.len, next.stored + next.len);
        }
        until
    }

    /// Returns the run from the kept element `at` on, up to `end`.
    fn run(&self, at: u64, end: u64) -> CopyRun {
        let (wide, stored) = self.places(at);
        let row = self.axes.last().map_or(1, |axis| axis.kept.size);
        CopyRun {
            wide,
            stored,
            len: (row - at % row).min(end - at),
        }
    }

    /// Counts the kept elements before element `index` of the wide tensor.
    fn kept_before(&self, index: u64) -> u64 {
        let (mut rest, mut count) = (index, 0);
        for axis in &self.axes {
            let digit = rest.checked_div(axis.wide.stride).unwrap_or(0);
            rest -= digit * axis.wide.stride;
            count += digit.min(axis.kept.size) * axis.kept.stride;
            if digit >= axis.kept.size {
                break;
            }
        }
        count
    }

    /// Returns the index of the kept element `at` in the wide tensor and in the stored one.
    fn places(&self, at: u64) -> (u64, u64) {
        let (mut rest, mut wide, mut stored) = (at, 0, 0);
        for axis in &self.axes {
            let digit = rest / axis.kept.stride;
            rest -= digit * axis.kept.stride;
            wide += digit * axis.wide.stride;
            stored += digit * axis.stored.stride;
        }
        (wide, stored)
    }
}

/// Kept elements that one read covers.
#[derive(Debug)]
pub struct Piece<'a> {
    placement: &'a Placement,
    kept: Range<u64>,
    /// The first element of the window in the wide tensor.
    start: u64,
}

impl Piece<'_> {
    /// Returns the elements of the stored tensor that the piece spans.
    pub fn stored(&self) -> Range<u64> {
        self.placement.places(self.kept.start).1..self.placement.places(self.kept.end - 1).1 + 1
    }

    /// Returns the piece's place in the window if it is a single run.
    pub fn alone(&self) -> Option<Range<usize>> {
        let run = self.placement.run(self.kept.start, self.kept.end);
        (run.len == self.kept.end - self.kept.start).then(|| span(run.wide - self.start, run.len))
    }

    /// Calls `put` for every run with its place in the piece and its place in the window.
    pub fn runs(&self, put: &mut dyn FnMut(Range<usize>, Range<usize>)) {
        let first = self.placement.places(self.kept.start).1;
        let mut at = self.kept.start;
        while at < self.kept.end {
            let run = self.placement.run(at, self.kept.end);
            put(
                span(run.stored - first, run.len),
                span(run.wide - self.start, run.len),
            );
            at += run.len;
        }
    }
}

fn span(start: u64, len: u64) -> Range<usize> {
    let index = |number: u64| usize::try_from(number).expect("a block fits the memory");
    index(start)..index(start + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills a window of `len` elements from `start` on by pieces; zeros where nothing is kept.
    fn window(placement: &Placement, stored: &[u16], start: u64, len: u64) -> Vec<u16> {
        let mut window = vec![0; usize::try_from(len).expect("small")];
        let mut bring = |piece: &Piece<'_>| {
            let range = piece.stored();
            let read = &stored[span(range.start, range.end - range.start)];
            if let Some(place) = piece.alone() {
                window[place].copy_from_slice(read);
            } else {
                piece.runs(&mut |from, to| window[to].copy_from_slice(&read[from]));
            }
            Ok(())
        };
        placement
            .pieces(start, len, 2, &mut bring)
            .expect("nothing fails");
        window
    }

    /// Computes the same element by element.
    fn naive(stored: &[u16], shape: &[u64], wide: &[u64]) -> Vec<u16> {
        let element = |mut index: u64| {
            let (mut at, mut stride) = (0, 1);
            for (own, wide) in shape.iter().zip(wide).rev() {
                if index % wide >= *own {
                    return 0;
                }
                at += index % wide * stride;
                (stride, index) = (stride * own, index / wide);
            }
            stored[usize::try_from(at).expect("small")]
        };
        (0..wide.iter().product()).map(element).collect()
    }

    #[test]
    fn any_window_is_that_of_the_whole_whichever_axes_differ() {
        let shapes: [(&[u64], &[u64]); 14] = [
            (&[3, 4], &[5, 7]),
            (&[3, 4], &[3, 7]),
            (&[3, 4], &[5, 4]),
            (&[5, 4], &[3, 7]),
            (&[5, 7], &[5, 4]),
            (&[2, 2, 3], &[2, 4, 3]),
            (&[2, 5, 3, 3], &[2, 3, 3, 3]),
            (&[2, 3, 2, 2], &[3, 2, 4, 1]),
            (&[3], &[7]),
            (&[0, 4], &[2, 4]),
            (&[2, 0], &[2, 3]),
            (&[2, 3], &[2, 0]),
            (&[1, 1, 4], &[2, 3, 2]),
            (&[4, 1, 6], &[4, 1, 5]),
        ];
        for (shape, wide) in shapes {
            let placement = Placement::new(shape, wide, wide).expect("something moves");
            let stored: Vec<u16> = (1..)
                .take(shape.iter().product::<u64>().try_into().expect("small"))
                .collect();
            let whole = naive(&stored, shape, wide);
            let total: u64 = wide.iter().product();
            assert_eq!(
                placement.count(0, total),
                whole.iter().filter(|element| **element != 0).count() as u64
            );
            for start in 0..=total {
                for len in 0..=total - start {
                    let wanted = &whole[span(start, len)];
                    assert_eq!(
                        window(&placement, &stored, start, len),
                        wanted,
                        "{shape:?} {wide:?} {start} {len}"
                    );
                    let numbers = || {
                        wanted
                            .iter()
                            .filter(|element| **element != 0)
                            .map(|element| u64::from(*element))
                    };
                    let range = numbers()
                        .min()
                        .map_or(0..0, |least| least - 1..numbers().max().unwrap_or(0));
                    assert_eq!(placement.range(start, len), range);
                }
            }
        }
    }

    #[test]
    fn what_lies_at_the_start_of_the_stored_tensor_is_not_moved() {
        for (shape, wide) in [([3_u64, 4], [3_u64, 4]), ([9, 4], [7, 4])] {
            assert_eq!(Placement::new(&shape, &wide, &wide), None);
        }
        let lacks = |common: &[u64], wide: &[u64]| {
            Placement::new(&[9, 4], common, wide).map(|p| p.lacks_some())
        };
        assert_eq!(
            (lacks(&[7, 4], &[7, 5]), lacks(&[7, 3], &[7, 3])),
            (Some(true), Some(false))
        );
        // Cut to seven rows, then filled up to eight.
        let cut = Placement::new(&[9, 4], &[7, 4], &[8, 4]).expect("something moves");
        assert_eq!(
            (cut.lacks_some(), cut.count(0, 32), cut.range(0, 32)),
            (true, 28, 0..28)
        );
    }

    #[test]
    fn pieces_of_many_runs_stay_small_and_far_runs_are_read_apart() {
        let placement = Placement::new(&[4000, 9], &[4000, 4], &[4000, 4]).expect("cropped");
        let mut pieces = Vec::new();
        let mut bring = |piece: &Piece<'_>| {
            pieces.push(piece.stored());
            Ok(())
        };
        placement
            .pieces(0, 16_000, 8, &mut bring)
            .expect("nothing fails");
        assert!(
            pieces.len() == 2
                && pieces
                    .iter()
                    .all(|range| (range.end - range.start) * 8 <= PIECE_BYTES)
        );
        let far = Placement::new(&[5, 100_000], &[5, 4], &[5, 4]).expect("cropped");
        let mut count = 0;
        let mut bring = |piece: &Piece<'_>| {
            count += 1;
            assert_eq!(piece.stored().end - piece.stored().start, 4);
            Ok(())
        };
        far.pieces(0, 20, 8, &mut bring).expect("nothing fails");
        assert_eq!(count, 5);
    }
}
