//! The bench that computes: the processor or a device, with the same bits on both.
//!
//! Work comes in runs of chunks. On the processor a run is a loop over the chunks; on a device it
//! is copied over once and each operation is one launch for all of its chunks. An operation without
//! a kernel for the device is done by the processor's loop, on the elements that stay on the host
//! anyway: that is the default of each operation.

use std::ops::Range;

use rayon::ThreadPool;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{Elements, GramOptions, Kernels, Scratch, pair_count};
use crate::method::Solution;
use crate::plan::tensor::TensorPlan;

use super::equal::first_equal_input;

/// The processor or a device, shared by the threads of a pool.
pub trait Bench: Send + Sync {
    /// The processor's kernels, for work element by element.
    fn kernels(&self) -> Kernels;

    /// The threads of the bench.
    fn pool(&self) -> &ThreadPool;

    /// The bench for groups of `group` elements that are whole in memory: short groups cost more to
    /// copy to a device than to compute.
    fn for_groups(&self, group: usize) -> &dyn Bench;

    /// The most elements of `tensor` for one run: as many whole groups of `group` elements as are
    /// best computed together, or whole chunks of one group if a group does not fit.
    fn run_len(&self, tensor: &TensorPlan, group: usize) -> usize;

    /// Takes a worker's seat, waiting until one is free.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) once a device has failed.
    fn seat(&self) -> Result<Box<dyn Seat + '_>>;
}

/// The working memory of one thread: a scratch, or a lane of a device.
pub trait Seat {
    /// Loads `inputs`, equally many elements of each and at most [`Bench::run_len`], for an output
    /// of type `out`.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when the device fails.
    fn load<'r>(&'r mut self, inputs: Vec<Elements<'r>>, out: Dtype) -> Result<Box<dyn Run + 'r>>;
}

/// The elements of a run. Chunks are ranges of them.
///
/// Every operation fails with [`Kind::Device`](crate::error::Kind::Device) when the device does.
pub trait Run {
    /// The elements on the host, with the processor's kernels and working memory.
    fn host(&mut self) -> Host<'_>;

    /// Writes the inner products of every pair of inputs, chunk by chunk, as [`Kernels::gram`]
    /// does.
    fn gram(
        &mut self,
        chunks: &[Range<usize>],
        options: GramOptions,
        sums: &mut [f64],
    ) -> Result<()> {
        let Host {
            kernels,
            inputs,
            scratch,
            ..
        } = self.host();
        for (chunk, sums) in chunks
            .iter()
            .zip(sums.chunks_exact_mut(pair_count(inputs.len())))
        {
            kernels.gram(&sliced(inputs, chunk), options, scratch, sums);
        }
        Ok(())
    }

    /// Writes them to twice the digits, as [`Kernels::gram_wide`] does.
    fn gram_wide(
        &mut self,
        chunks: &[Range<usize>],
        skip_nonfinite: bool,
        sums: &mut [f64],
    ) -> Result<()> {
        let Host {
            kernels,
            inputs,
            scratch,
            ..
        } = self.host();
        for (chunk, sums) in chunks
            .iter()
            .zip(sums.chunks_exact_mut(2 * pair_count(inputs.len())))
        {
            kernels.gram_wide(&sliced(inputs, chunk), skip_nonfinite, scratch, sums);
        }
        Ok(())
    }

    /// Tells for each chunk if an element of any input is NaN or infinite.
    fn scan(&mut self, chunks: &[Range<usize>]) -> Result<Vec<bool>> {
        let Host {
            kernels, inputs, ..
        } = self.host();
        let is_odd = |chunk| {
            sliced(inputs, chunk)
                .iter()
                .any(|input| kernels.first_nonfinite(*input).is_some())
        };
        Ok(chunks.iter().map(is_odd).collect())
    }

    /// Combines pieces, which are contiguous from the first element on, each by its solution, into
    /// `output`.
    ///
    /// With `look`, also returns the chunks in which an input may not be finite.
    fn combine(&mut self, pieces: &[Piece<'_>], look: bool, output: &mut [u8]) -> Result<Combined> {
        Ok(self.host().combine(pieces, look, output))
    }
}

/// A chunk and the solution by which it is combined.
pub struct Piece<'a> {
    /// The range of elements of the run.
    pub chunk: Range<usize>,
    /// Their coefficients.
    pub solution: &'a Solution,
}

/// The outcome of combining a run.
#[derive(Debug, Default)]
pub struct Combined {
    /// Finite values that became infinite or NaN when they were rounded.
    pub overflows: u64,
    /// The chunks in which an input may hold NaN or infinity, if that was asked for.
    pub suspects: Vec<Range<usize>>,
}

/// The elements of a run on the host, with the processor's kernels and working memory.
pub struct Host<'a> {
    /// The loops.
    pub kernels: Kernels,
    /// The elements of each input.
    pub inputs: &'a [Elements<'a>],
    /// The type of the output.
    pub out: Dtype,
    /// Working memory for the loops.
    pub scratch: &'a mut Scratch,
}

impl Host<'_> {
    /// As [`Run::combine`], by the processor.
    pub fn combine(&mut self, pieces: &[Piece<'_>], look: bool, output: &mut [u8]) -> Combined {
        let mut combined = Combined::default();
        let mut rest = output;
        for piece in pieces {
            let (bytes, after) = rest.split_at_mut(piece.chunk.len() * self.out.bytes());
            let (overflows, finite) = self.combine_piece(piece, bytes);
            combined.overflows += overflows;
            if look && !finite {
                combined.suspects.push(piece.chunk.clone());
            }
            rest = after;
        }
        combined
    }

    /// Returns the number of finite values that overflowed, and true if the sums show that all
    /// inputs are finite.
    fn combine_piece(&mut self, piece: &Piece<'_>, output: &mut [u8]) -> (u64, bool) {
        let (solution, inputs) = (piece.solution, sliced(self.inputs, &piece.chunk));
        if let Some(input) = first_equal_input(solution, &inputs) {
            return (self.kernels.convert(inputs[input], self.out, output), false);
        }
        let others =
            |(input, weight): &(usize, f64)| *weight != 0.0 && Some(*input) != solution.center;
        let weights = solution.coefficients.iter().copied().enumerate();
        let terms: Vec<(f64, Elements<'_>)> = weights
            .filter(others)
            .map(|(input, weight)| (weight, inputs[input]))
            .collect();
        let (found, taken) = match solution.center {
            None => (
                self.kernels
                    .combine(&terms, solution.divisor, self.out, self.scratch, output),
                terms.len(),
            ),
            Some(center) => {
                let base = (solution.coefficients[center], inputs[center]);
                (
                    self.kernels
                        .combine_differences(base, &terms, self.out, self.scratch, output),
                    terms.len() + 1,
                )
            }
        };
        // The sums do not show an input without a weight.
        (found.overflows, found.finite && taken == inputs.len())
    }
}

/// The elements of `range`, one entry for each input.
pub(super) fn sliced<'a>(inputs: &[Elements<'a>], range: &Range<usize>) -> Vec<Elements<'a>> {
    inputs
        .iter()
        .map(|input| input.slice(range.clone()))
        .collect()
}
