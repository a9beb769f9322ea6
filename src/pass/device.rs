//! A device's bench: runs that fit a lane are copied to the device, and each operation is one
//! launch.
//!
//! Rare and short work stays on the processor, with the same bits: chunks with NaN or infinity,
//! sums to twice the digits and sums of differences (which have no kernel), groups below
//! [`LEAST_SEGMENT`] elements, and columns.

use std::ops::Range;

use rayon::ThreadPool;

use crate::device::{LEAST_SEGMENT, LaneGuard, Lanes, Mix, Resident};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{Elements, GramOptions, Kernels, Scratch};
use crate::plan::tensor::TensorPlan;

use super::bench::{Bench, Combined, Host, Piece, Run, Seat, sliced};
use super::equal::first_equal_input;
use super::processor::Processor;

/// A device's lanes, and the processor whose threads use them.
pub struct Device {
    lanes: Lanes,
    processor: Processor,
}

impl Device {
    /// A bench that computes in `lanes` and leaves rare and short work to `processor`.
    pub fn new(lanes: Lanes, processor: Processor) -> Self {
        Self { lanes, processor }
    }
}

impl Bench for Device {
    fn kernels(&self) -> Kernels {
        self.processor.kernels()
    }

    fn pool(&self) -> &ThreadPool {
        self.processor.pool()
    }

    fn for_groups(&self, group: usize) -> &dyn Bench {
        if group >= LEAST_SEGMENT {
            self
        } else {
            &self.processor
        }
    }

    /// Returns the elements of as many groups as a lane holds.
    fn run_len(&self, tensor: &TensorPlan, group: usize) -> usize {
        let inputs: Vec<Dtype> = tensor.sources.iter().map(|source| source.dtype).collect();
        let capacity = self.lanes.capacity(&inputs, tensor.dtype);
        assert!(
            capacity > 0,
            "the plan makes lanes that hold a chunk of every tensor"
        );
        if (1..=capacity).contains(&group) {
            capacity / group * group
        } else {
            capacity
        }
    }

    fn seat(&self) -> Result<Box<dyn Seat + '_>> {
        Ok(Box::new(LaneSeat {
            kernels: self.kernels(),
            lane: self.lanes.take()?,
        }))
    }
}

struct LaneSeat<'a> {
    kernels: Kernels,
    lane: LaneGuard<'a>,
}

impl Seat for LaneSeat<'_> {
    fn load<'r>(&'r mut self, inputs: Vec<Elements<'r>>, out: Dtype) -> Result<Box<dyn Run + 'r>> {
        let resident = self.lane.load(&inputs, out)?;
        Ok(Box::new(InLane {
            kernels: self.kernels,
            inputs,
            out,
            resident,
            scratch: Scratch::default(),
        }))
    }
}

/// Elements on the device and on the host.
struct InLane<'a> {
    kernels: Kernels,
    inputs: Vec<Elements<'a>>,
    out: Dtype,
    resident: Resident<'a>,
    /// Working memory for operations that the processor takes over.
    scratch: Scratch,
}

impl Run for InLane<'_> {
    fn host(&mut self) -> Host<'_> {
        Host {
            kernels: self.kernels,
            inputs: &self.inputs,
            out: self.out,
            scratch: &mut self.scratch,
        }
    }

    fn gram(
        &mut self,
        chunks: &[Range<usize>],
        options: GramOptions,
        sums: &mut [f64],
    ) -> Result<()> {
        self.resident.gram(chunks, options, sums)
    }

    fn scan(&mut self, chunks: &[Range<usize>]) -> Result<Vec<bool>> {
        self.resident.nonfinite(chunks)
    }

    fn combine(&mut self, pieces: &[Piece<'_>], look: bool, output: &mut [u8]) -> Result<Combined> {
        // No kernel sums differences.
        if pieces.iter().any(|piece| piece.solution.center.is_some()) {
            return Ok(self.host().combine(pieces, look, output));
        }
        let mut suspects = Vec::new();
        if look {
            let chunks: Vec<Range<usize>> =
                pieces.iter().map(|piece| piece.chunk.clone()).collect();
            let odd = self.scan(&chunks)?;
            suspects.extend(
                chunks
                    .into_iter()
                    .zip(odd)
                    .filter(|(_, odd)| *odd)
                    .map(|(chunk, _)| chunk),
            );
        }
        let mixes: Vec<(Range<usize>, Mix<'_>)> = pieces
            .iter()
            .map(|piece| (piece.chunk.clone(), mix(piece, &self.inputs)))
            .collect();
        Ok(Combined {
            overflows: self.resident.combine(&mixes, output)?,
            suspects,
        })
    }
}

/// Converts the solution of a piece to the device's form.
fn mix<'s>(piece: &Piece<'s>, inputs: &[Elements<'_>]) -> Mix<'s> {
    match first_equal_input(piece.solution, &sliced(inputs, &piece.chunk)) {
        Some(input) => Mix::Only(input),
        None => Mix::Weights(&piece.solution.coefficients, piece.solution.divisor),
    }
}
