//! The layout of a lane's memory, and the tables that the kernels read.
//!
//! ```text
//!  inputs | elements of each input | pieces | weights | overflows | first | sums | output
//!  └──────── brought over ─────────┘└──────── brought over ────────────┘└── fetched back ──┘
//! ```
//!
//! The host's copy of it, in pinned memory, has the same layout. Every part begins at a multiple of
//! [`ALIGNMENT`].

use std::ops::Range;

use crate::dtype::Dtype;
use crate::kernel::{CHUNK, pair_count};

use super::LEAST_SEGMENT;

/// Every part begins at a multiple of this, so that copies are whole lines of memory.
const ALIGNMENT: usize = 256;

/// Bytes of `struct Input` and `struct Piece` in `kernels.cu`.
pub(super) const RECORD: usize = 16;

/// Stands for no input: in a piece that is not copied, and in Gram sums without a centre.
pub(super) const NONE: u32 = u32::MAX;

/// The number of an element type in `element.h`.
///
/// # Panics
///
/// Panics if elements of the type are not averaged.
pub(super) fn code(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F64 => 0,
        Dtype::F32 => 1,
        Dtype::F16 => 2,
        Dtype::BF16 => 3,
        Dtype::F8E4M3 => 4,
        Dtype::F8E5M2 => 5,
        other => panic!("{other} elements are not averaged"),
    }
}

/// The parts of a lane's memory for some elements of some inputs, as ranges of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneLayout {
    /// A record for each input.
    pub(super) inputs: Range<usize>,
    /// The elements of each input.
    pub(super) elements: Vec<Range<usize>>,
    /// A record for each piece.
    pub(super) pieces: Range<usize>,
    /// Weights, one for each piece and input.
    pub(super) weights: Range<usize>,
    /// The count of overflows.
    pub(super) overflows: Range<usize>,
    /// Places of elements that are not finite, one for each piece and input.
    pub(super) first: Range<usize>,
    /// Inner products, one for each piece and pair.
    pub(super) sums: Range<usize>,
    /// The output's elements.
    pub(super) output: Range<usize>,
    most_pieces: usize,
}

impl LaneLayout {
    /// The layout for `len` elements of inputs of these types, and of an output of type `out`.
    pub fn new(inputs: &[Dtype], out: Dtype, len: usize) -> Self {
        let mut at = 0;
        let mut part = |bytes: usize| take(&mut at, bytes);
        let most_pieces = most_pieces(len);
        let count = inputs.len();
        Self {
            inputs: part(count * RECORD),
            elements: inputs
                .iter()
                .map(|dtype| part(len * dtype.bytes()))
                .collect(),
            pieces: part(most_pieces * RECORD),
            weights: part(most_pieces * (count + 1) * size_of::<f64>()),
            overflows: part(size_of::<u64>()),
            first: part(most_pieces * count * size_of::<u32>()),
            sums: part(most_pieces * pair_count(count) * size_of::<f64>()),
            output: part(len * out.bytes()),
            most_pieces,
        }
    }

    /// The bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.output.end.next_multiple_of(ALIGNMENT)
    }

    /// The most elements, in whole chunks, that fit `bytes` of memory; zero if not even one chunk
    /// fits.
    pub fn capacity(inputs: &[Dtype], out: Dtype, bytes: usize) -> usize {
        let fits = |chunks: usize| Self::new(inputs, out, chunks * CHUNK).bytes() <= bytes;
        let unit = inputs.iter().map(|dtype| dtype.bytes()).sum::<usize>() + out.bytes();
        let (mut enough, mut too_many) = (0, bytes / (unit * CHUNK) + 1);
        while too_many - enough > 1 {
            let middle = enough.midpoint(too_many);
            if fits(middle) {
                enough = middle
            } else {
                too_many = middle
            }
        }
        enough * CHUNK
    }

    /// The most pieces at once.
    pub(super) fn most_pieces(&self) -> usize {
        self.most_pieces
    }
}

/// The most pieces that `len` elements are cut into: segments of at least [`LEAST_SEGMENT`], except
/// the last one, cut at whole chunks.
fn most_pieces(len: usize) -> usize {
    len / LEAST_SEGMENT + 2
}

/// Takes the next `bytes` from `at` on, and aligns what follows.
fn take(at: &mut usize, bytes: usize) -> Range<usize> {
    let begin = *at;
    *at = (begin + bytes).next_multiple_of(ALIGNMENT);
    begin..begin + bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_are_aligned() {
        for len in [0, 1, LEAST_SEGMENT, CHUNK - 1, 3 * CHUNK] {
            let layout =
                LaneLayout::new(&[Dtype::F8E4M3, Dtype::F64, Dtype::BF16], Dtype::F32, len);
            let mut parts = vec![&layout.inputs];
            parts.extend(&layout.elements);
            parts.extend([
                &layout.pieces,
                &layout.weights,
                &layout.overflows,
                &layout.first,
                &layout.sums,
            ]);
            parts.push(&layout.output);
            assert!(
                parts.windows(2).all(|pair| pair[0].end <= pair[1].start),
                "{layout:?}"
            );
            assert!(
                parts
                    .iter()
                    .all(|part| part.start % ALIGNMENT == 0 && part.end <= layout.bytes()),
                "{layout:?}"
            );
        }
    }

    #[test]
    fn the_capacity_is_the_most_that_fits() {
        let inputs = [Dtype::BF16; 3];
        for bytes in [0, 1 << 10, 300_000, 1 << 20, 5 << 20, (16 << 20) + 1] {
            let most = LaneLayout::capacity(&inputs, Dtype::BF16, bytes);
            assert!(most == 0 || LaneLayout::new(&inputs, Dtype::BF16, most).bytes() <= bytes);
            assert!(LaneLayout::new(&inputs, Dtype::BF16, most + CHUNK).bytes() > bytes);
        }
    }

    #[test]
    fn no_cut_into_segments_makes_more_pieces_than_there_is_room_for() {
        for segment in [
            LEAST_SEGMENT,
            LEAST_SEGMENT + 1,
            2000,
            CHUNK - 1,
            CHUNK,
            CHUNK + 1,
            2 * CHUNK + 1,
        ] {
            for len in [1, segment, 7 * segment + 3, 40 * segment - 1] {
                let whole = len / segment * segment.div_ceil(CHUNK);
                assert!(
                    whole + (len % segment).div_ceil(CHUNK) <= most_pieces(len),
                    "{len} in {segment}"
                );
            }
        }
    }
}
