//! Elements in a lane's memory on the device, and the work on them.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{GramOptions, pair_count};

use super::lanes::Lane;
use super::layout::{LaneLayout, NONE, RECORD, code};
use super::{Argument, Kernel};

/// Inputs on each side of a block of pairs, `SIDE` in `kernels.cu`.
const SIDE: usize = 4;
/// Blocks of threads that share a piece whose elements do not depend on each other.
const SHARES: usize = 8;

/// The way in which a piece is combined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix<'a> {
    /// The weighted sum over a divisor, one weight for each input; inputs of weight zero are left
    /// out.
    Weights(&'a [f64], f64),
    /// The elements of one input, converted if its type is not the output's.
    Only(usize),
}

/// Elements in a lane's memory on the device, until this is dropped.
pub struct Resident<'a> {
    pub(super) lane: &'a mut Lane,
    /// True if all work asked of the lane was done.
    pub(super) sound: &'a mut bool,
    pub(super) layout: LaneLayout,
    pub(super) dtypes: Vec<Dtype>,
    pub(super) out: Dtype,
    pub(super) len: usize,
}

impl Resident<'_> {
    /// Writes the inner products of every pair of inputs, piece by piece, as
    /// [`Kernels::gram`](crate::kernel::Kernels::gram) does for a chunk.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when the device fails.
    ///
    /// # Panics
    ///
    /// Panics if `sums` does not hold one number for each piece and pair.
    pub fn gram(
        &mut self,
        pieces: &[Range<usize>],
        options: GramOptions,
        sums: &mut [f64],
    ) -> Result<()> {
        let count = self.dtypes.len();
        let pairs = pair_count(count);
        assert_eq!(
            sums.len(),
            pieces.len() * pairs,
            "sums are not one for each piece and pair"
        );
        if sums.is_empty() {
            return Ok(());
        }
        self.put_pieces(pieces, |_| NONE)?;
        // The products of wide elements or of differences are rounded, so they must not be fused
        // into the sums.
        let exact = options.center.is_none() && !self.dtypes.contains(&Dtype::F64);
        let tiles = count.div_ceil(SIDE);
        let arguments = [
            self.address(self.layout.inputs.start),
            self.address(self.layout.pieces.start),
            Argument::Word(word(count)),
            Argument::Word(options.center.map_or(NONE, word)),
            Argument::Word(u32::from(options.skip_nonfinite)),
            Argument::Word(u32::from(exact)),
            self.address(self.layout.sums.start),
        ];
        self.lane.launch(
            Kernel::GramSums,
            [pieces.len(), pair_count(tiles)],
            &arguments,
        )?;
        let part = self.layout.sums.start..self.layout.sums.start + size_of_val(sums);
        for (sum, bytes) in sums.iter_mut().zip(self.fetch(part)?.as_chunks().0) {
            *sum = f64::from_le_bytes(*bytes);
        }
        self.done();
        Ok(())
    }

    /// Tells for each piece if an element of any input is NaN or infinite.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when the device fails.
    pub fn nonfinite(&mut self, pieces: &[Range<usize>]) -> Result<Vec<bool>> {
        let first = self.first_nonfinite(pieces)?;
        Ok(first
            .chunks(self.dtypes.len().max(1))
            .map(|piece| piece.iter().any(Option::is_some))
            .collect())
    }

    /// Finds, for each piece and input, the index in the piece of the first element that is NaN or
    /// infinite.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when the device fails.
    pub fn first_nonfinite(&mut self, pieces: &[Range<usize>]) -> Result<Vec<Option<usize>>> {
        let count = self.dtypes.len();
        if pieces.is_empty() || count == 0 {
            return Ok(vec![]);
        }
        let part = self.layout.first.start
            ..self.layout.first.start + pieces.len() * count * size_of::<u32>();
        self.put_pieces(pieces, |_| NONE)?;
        self.lane.host(part.clone()).fill(u8::MAX);
        self.lane.copy_in(part.clone())?;
        let arguments = [
            self.address(self.layout.inputs.start),
            self.address(self.layout.pieces.start),
            Argument::Word(word(count)),
            self.address(part.start),
        ];
        self.lane
            .launch(Kernel::Scan, [pieces.len(), count], &arguments)?;
        let places = self
            .fetch(part)?
            .as_chunks()
            .0
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes));
        let first = places
            .map(|place| (place != NONE).then_some(place as usize))
            .collect();
        self.done();
        Ok(first)
    }

    /// Combines the pieces, which are contiguous from the first element on, into `dst` with one
    /// rounding, as [`Kernels::combine`](crate::kernel::Kernels::combine) and
    /// [`Kernels::convert`](crate::kernel::Kernels::convert) do; returns the number of finite
    /// values that overflowed.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when the device fails.
    ///
    /// # Panics
    ///
    /// Panics if `dst` does not hold all elements.
    pub fn combine(&mut self, pieces: &[(Range<usize>, Mix<'_>)], dst: &mut [u8]) -> Result<u64> {
        assert_eq!(
            dst.len(),
            self.len * self.out.bytes(),
            "the output is not as long as the inputs"
        );
        let count = self.dtypes.len();
        if pieces.is_empty() {
            return Ok(0);
        }
        self.put_mixes(pieces)?;
        let overflows = self.layout.overflows.clone();
        self.lane.host(overflows.clone()).fill(0);
        self.lane.copy_in(overflows.clone())?;
        let arguments = [
            self.address(self.layout.inputs.start),
            self.address(self.layout.pieces.start),
            Argument::Word(word(count)),
            self.address(self.layout.weights.start),
            Argument::Word(code(self.out)),
            self.address(self.layout.output.start),
            self.address(overflows.start),
        ];
        self.lane
            .launch(Kernel::Combine, [pieces.len(), SHARES], &arguments)?;
        self.lane.copy_out(overflows.clone())?;
        let part = self.layout.output.clone();
        dst.copy_from_slice(self.fetch(part)?);
        let counted = self.lane.host(overflows).as_chunks().0.first();
        let counted = counted.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.done();
        Ok(counted)
    }

    /// Copies the pieces and their weights to the device.
    fn put_mixes(&mut self, pieces: &[(Range<usize>, Mix<'_>)]) -> Result<()> {
        let copied: Vec<u32> = pieces.iter().map(|(_, mix)| self.copied(mix)).collect();
        let ranges: Vec<Range<usize>> = pieces.iter().map(|(range, _)| range.clone()).collect();
        self.put_pieces(&ranges, |piece| copied[piece])?;
        self.put_weights(pieces);
        let row = (self.dtypes.len() + 1) * size_of::<f64>();
        let start = self.layout.weights.start;
        self.lane.copy_in(start..start + pieces.len() * row)
    }

    /// Returns the input whose bytes a piece takes as they are; [`NONE`] when they are computed.
    fn copied(&self, mix: &Mix<'_>) -> u32 {
        match mix {
            Mix::Only(input) if self.dtypes[*input] == self.out => word(*input),
            _ => NONE,
        }
    }

    /// Writes the rows of weights, each with its divisor; an input that is converted has weight
    /// one.
    fn put_weights(&mut self, pieces: &[(Range<usize>, Mix<'_>)]) {
        let count = self.dtypes.len();
        let rows = self
            .lane
            .host(self.layout.weights.clone())
            .as_chunks_mut::<8>()
            .0
            .chunks_exact_mut(count + 1);
        for (row, (_, mix)) in rows.zip(pieces) {
            let (last, row) = row.split_last_mut().expect("a row has a divisor at least");
            let divisor: f64 = if let Mix::Weights(_, divisor) = mix {
                *divisor
            } else {
                1.0
            };
            *last = divisor.to_le_bytes();
            for (input, weight) in row.iter_mut().enumerate() {
                let value = match mix {
                    Mix::Weights(weights, _) => weights[input],
                    Mix::Only(only) => f64::from(u8::from(*only == input)),
                };
                *weight = value.to_le_bytes();
            }
        }
    }

    /// Copies the table of pieces to the device; the lane is not sound until the work that begins
    /// here is done.
    fn put_pieces(&mut self, pieces: &[Range<usize>], copied: impl Fn(usize) -> u32) -> Result<()> {
        assert!(
            pieces.len() <= self.layout.most_pieces(),
            "more pieces than there is room for"
        );
        *self.sound = false;
        let part = self.layout.pieces.start..self.layout.pieces.start + pieces.len() * RECORD;
        let records = self.lane.host(part.clone()).chunks_exact_mut(RECORD);
        for (index, (record, piece)) in records.zip(pieces).enumerate() {
            assert!(piece.end <= self.len, "a piece beyond the elements");
            record[..4].copy_from_slice(&word(piece.start).to_le_bytes());
            record[4..8].copy_from_slice(&word(piece.len()).to_le_bytes());
            record[8..12].copy_from_slice(&copied(index).to_le_bytes());
        }
        self.lane.copy_in(part)
    }

    /// Fetches a part of the device's memory and waits for it.
    fn fetch(&mut self, part: Range<usize>) -> Result<&[u8]> {
        self.lane.copy_out(part.clone())?;
        self.lane.wait()?;
        Ok(self.lane.host(part))
    }

    fn address(&self, offset: usize) -> Argument {
        Argument::Address(self.lane.memory.at(offset))
    }

    fn done(&mut self) {
        *self.sound = true;
    }
}

/// A count as the kernels take it, in 32 bits.
pub(super) fn word(count: usize) -> u32 {
    u32::try_from(count).expect("a lane holds fewer than 2^32 elements")
}
