//! What `work` does on one block, done on a device: the same sums and roundings, in runs that fit a lane.
//!
//! What is rare or short stays on the processor, where it has the same bits: chunks that hold NaN or infinity are
//! looked into there, segments below [`LEAST_SEGMENT`] and columns are not handed over.

use std::ops::Range;

use crate::device::{LEAST_SEGMENT, Lanes, Mix, Resident, Taken};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{self, Kernels, Scratch, pair_count};
use crate::method::{Gram, Method, Solution, Statistics};
use crate::plan::schedule::is_measured;
use crate::plan::tensor::TensorPlan;
use crate::recipe::NanPolicy;
use crate::report::Found;

use super::copied::only;
use super::propagate::{let_through, refuse_overflow};
use super::tiny;
use super::work::{self, Measured, Part};

/// Whether whole segments of `tensor` are worked on on a device.
pub fn is_worth_it(tensor: &TensorPlan) -> bool {
    !is_measured(tensor) || tensor.segment >= LEAST_SEGMENT as u64
}

/// Work on one block that is handed over. Every method fails as its namesake in `work` does, and with
/// [`Kind::Device`](crate::error::Kind::Device) when the device fails.
pub struct Offload<'a> {
    /// Where it is done.
    pub lanes: &'a Lanes,
    /// What looks into chunks that are not finite.
    pub kernels: Kernels,
    /// The block.
    pub part: &'a Part<'a>,
}

/// Elements of the block that lie in a lane.
struct Run<'a> {
    range: Range<usize>,
    resident: Resident<'a>,
}

impl Run<'_> {
    /// A range of the block as the lane counts.
    fn within(&self, range: &Range<usize>) -> Range<usize> {
        range.start - self.range.start..range.end - self.range.start
    }
}

impl Offload<'_> {
    /// As [`work::measure`], for a range of the block.
    pub fn measure(&self, method: &dyn Method, range: Range<usize>) -> Result<Measured> {
        let mut measured = Measured::default();
        let mut lane = self.lanes.take()?;
        for range in self.cut(range) {
            let pieces: Vec<_> = work::chunks(range.clone()).collect();
            let mut run = self.load(&mut lane, range)?;
            let (sums, replaced) = self.measure_run(&mut run, method, &pieces)?;
            measured.sums.extend(sums);
            measured.replaced |= replaced.contains(&true);
        }
        Ok(measured)
    }

    /// As [`work::whole`].
    pub fn whole(&self, method: &dyn Method, output: &mut [u8]) -> Result<Found> {
        let (tensor, len) = (self.part.tensor(), self.part.len());
        if !is_measured(tensor) {
            let solution = method.solve(&Gram::new(self.part.windows.len()))?;
            let overflowed = self.combine(&solution, 0..len, false, output)?;
            return Ok(Found { overflowed, ..Found::default() });
        }
        let segment = usize::try_from(tensor.segment).expect("a block fits the memory").max(1);
        let unit = tensor.dtype.bytes();
        let mut found = Found::default();
        let capacity = self.capacity();
        // Several segments at a time, as many as a lane holds.
        let stride = (capacity / segment * segment).max(segment);
        for start in (0..len).step_by(stride) {
            let range = start..len.min(start + stride);
            let bytes = &mut output[range.start * unit..range.end * unit];
            if range.len() <= capacity {
                found.add(self.segments(method, range, segment, bytes)?);
                continue;
            }
            let solution = self.solve(method, &self.measure(method, range.clone())?)?;
            found.add(Found::of(&solution.facts));
            found.overflowed += self.apply(&solution, range, bytes)?;
        }
        Ok(found)
    }

    /// As [`work::apply`], for a range of the block, whose output is `output`.
    pub fn apply(&self, solution: &Solution, range: Range<usize>, output: &mut [u8]) -> Result<u64> {
        self.combine(solution, range, true, output)
    }

    /// Combines a range by a known solution. Unless it was looked through while it was `measured`, what is not finite is
    /// refused here or let through; the base is not asked for.
    fn combine(&self, solution: &Solution, range: Range<usize>, measured: bool, output: &mut [u8]) -> Result<u64> {
        let mut lane = self.lanes.take()?;
        let mut overflowed = 0;
        let mut rest = output;
        for range in self.cut(range) {
            let (bytes, after) = rest.split_at_mut(range.len() * self.part.tensor().dtype.bytes());
            let pieces: Vec<_> = work::chunks(range.clone()).collect();
            let mut run = self.load(&mut lane, range)?;
            if !measured {
                self.scan_run(&mut run, &pieces)?;
            }
            overflowed += self.combine_run(&mut run, pieces.into_iter().map(|piece| (piece, solution)), bytes)?;
            rest = after;
        }
        Ok(overflowed)
    }

    /// Measures, solves and applies segments that lie in a lane together.
    fn segments(&self, method: &dyn Method, range: Range<usize>, segment: usize, output: &mut [u8]) -> Result<Found> {
        let ends = |start: usize| start..range.end.min(start + segment);
        let segments: Vec<Vec<_>> =
            range.clone().step_by(segment).map(|start| work::chunks(ends(start)).collect()).collect();
        let pieces = segments.concat();
        let mut lane = self.lanes.take()?;
        let mut run = self.load(&mut lane, range.clone())?;
        let (sums, replaced) = self.measure_run(&mut run, method, &pieces)?;
        let pairs = sums.len() / pieces.len().max(1);
        let mut found = Found::default();
        let mut solved = Vec::with_capacity(segments.len());
        let mut at = 0;
        for chunks in segments {
            let of_it = at..at + chunks.len();
            let sums = sums[of_it.start * pairs..of_it.end * pairs].to_vec();
            let measured = Measured { sums, replaced: replaced[of_it.clone()].contains(&true) };
            let solution = self.solve(method, &measured)?;
            found.add(Found::of(&solution.facts));
            solved.push((chunks, solution));
            at = of_it.end;
        }
        let mixes =
            solved.iter().flat_map(|(chunks, solution)| chunks.iter().map(move |chunk| (chunk.clone(), solution)));
        found.overflowed += self.combine_run(&mut run, mixes, output)?;
        Ok(found)
    }

    fn solve(&self, method: &dyn Method, measured: &Measured) -> Result<Solution> {
        let gram = work::fold(self.part.windows.len(), measured);
        work::solve(self.part.tensor(), method, &gram, measured.replaced)
    }

    /// The sums of `pieces` of a run, and in which of them the base is to be taken instead.
    fn measure_run(
        &self,
        run: &mut Run<'_>,
        method: &dyn Method,
        pieces: &[Range<usize>],
    ) -> Result<(Vec<f64>, Vec<bool>)> {
        let center = match method.statistics() {
            Statistics::None => return Ok((vec![], self.scan_run(run, pieces)?)),
            Statistics::Wide => return self.measure_here(pieces),
            Statistics::Gram { center } => center,
        };
        let options = |skip_nonfinite| kernel::GramOptions { center, skip_nonfinite };
        let pairs = pair_count(self.part.windows.len());
        let mut sums = vec![0.0; pieces.len() * pairs];
        let local: Vec<_> = pieces.iter().map(|piece| run.within(piece)).collect();
        run.resident.gram(&local, options(false), &mut sums)?;
        let mut replaced = Vec::with_capacity(pieces.len());
        for ((piece, local), sums) in pieces.iter().zip(local).zip(sums.chunks_exact_mut(pairs)) {
            let again = |sums: &mut [f64]| run.resident.gram(&[local], options(true), sums);
            let taken = work::settle(self.kernels, self.part, piece.clone(), sums, again)?;
            if !taken {
                tiny::mark(self.kernels, self.part, method.statistics(), piece, sums);
            }
            replaced.push(taken);
        }
        Ok((sums, replaced))
    }

    /// Sums of twice the digits, on the processor: no kernel of the device has them.
    fn measure_here(&self, pieces: &[Range<usize>]) -> Result<(Vec<f64>, Vec<bool>)> {
        let width = Statistics::Wide.sums(self.part.windows.len());
        let (mut sums, mut scratch) = (vec![0.0; pieces.len() * width], Scratch::default());
        let measured = pieces.iter().zip(sums.chunks_exact_mut(width)).map(|(piece, sums)| {
            work::measure_chunk(self.kernels, self.part, Statistics::Wide, piece.clone(), &mut scratch, sums)
        });
        let replaced = measured.collect::<Result<Vec<bool>>>()?;
        Ok((sums, replaced))
    }

    /// Looks for NaN and infinity; returns in which pieces the base is to be taken instead.
    fn scan_run(&self, run: &mut Run<'_>, pieces: &[Range<usize>]) -> Result<Vec<bool>> {
        if self.part.plan.job.nan == NanPolicy::Propagate {
            return Ok(vec![false; pieces.len()]);
        }
        let local: Vec<_> = pieces.iter().map(|piece| run.within(piece)).collect();
        let odd = run.resident.nonfinite(&local)?;
        let replaced = |(piece, odd): (&Range<usize>, bool)| match odd {
            true => work::is_replaced(self.kernels, self.part, piece.clone()),
            false => Ok(false),
        };
        pieces.iter().zip(odd).map(replaced).collect()
    }

    /// Combines the pieces of a run, each by its solution; returns how many finite values overflowed.
    fn combine_run<'s>(
        &self,
        run: &mut Run<'_>,
        pieces: impl Iterator<Item = (Range<usize>, &'s Solution)>,
        output: &mut [u8],
    ) -> Result<u64> {
        let pieces: Vec<_> = pieces.collect();
        if pieces.iter().any(|(_, solution)| solution.center.is_some()) {
            return self.combine_here(run, &pieces, output);
        }
        let mix = |(piece, solution): &(Range<usize>, &'s Solution)| {
            let mix = match only(solution, &self.part.elements(piece)) {
                Some(input) => Mix::Only(input),
                None => Mix::Weights(&solution.coefficients, solution.divisor),
            };
            (run.within(piece), mix)
        };
        let mixes: Vec<_> = pieces.iter().map(mix).collect();
        let overflowed = run.resident.combine(&mixes, output)?;
        for (piece, solution) in &pieces {
            let bytes = self.of_piece(run, piece, output);
            let_through(self.kernels, self.part, solution, piece, bytes);
            if overflowed > 0 {
                refuse_overflow(self.kernels, self.part, piece, bytes)?;
            }
        }
        Ok(overflowed)
    }

    /// As [`Offload::combine_run`], on the processor: sums of differences, which are rare, have no kernel of their own.
    fn combine_here(&self, run: &Run<'_>, pieces: &[(Range<usize>, &Solution)], output: &mut [u8]) -> Result<u64> {
        let mut scratch = Scratch::default();
        let mut overflowed = 0;
        for (piece, solution) in pieces {
            let bytes = self.of_piece(run, piece, output);
            let (count, _) = work::combine_chunk(self.kernels, self.part, solution, piece, bytes, &mut scratch);
            if count > 0 {
                refuse_overflow(self.kernels, self.part, piece, bytes)?;
            }
            overflowed += count;
        }
        Ok(overflowed)
    }

    /// The output of a piece in that of its run.
    fn of_piece<'o>(&self, run: &Run<'_>, piece: &Range<usize>, output: &'o mut [u8]) -> &'o mut [u8] {
        let (unit, range) = (self.part.tensor().dtype.bytes(), run.within(piece));
        &mut output[range.start * unit..range.end * unit]
    }

    /// Runs of `range` that a lane holds, whole chunks but for the last one.
    fn cut(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let most = self.capacity();
        range.clone().step_by(most).map(move |start| start..range.end.min(start + most))
    }

    fn capacity(&self) -> usize {
        let tensor = self.part.tensor();
        let inputs: Vec<Dtype> = tensor.sources.iter().map(|source| source.dtype).collect();
        let capacity = self.lanes.capacity(&inputs, tensor.dtype);
        assert!(capacity > 0, "the plan makes lanes that hold a chunk of every tensor");
        capacity
    }

    fn load<'l>(&self, lane: &'l mut Taken<'_>, range: Range<usize>) -> Result<Run<'l>> {
        let resident = lane.load(&self.part.elements(&range), self.part.tensor().dtype)?;
        Ok(Run { range, resident })
    }
}
