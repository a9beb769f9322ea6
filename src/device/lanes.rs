//! The lanes, and the work on what lies in one.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Gram, pair_count};

use super::layout::{Layout, NONE, RECORD, code};
use super::{Address, Argument, Driver, Kernel, Stream};

/// Inputs on each side of a block of pairs, `SIDE` in `kernels.cu`.
const SIDE: usize = 4;
/// Blocks of threads that share a piece where its elements do not depend on each other.
const SHARES: u32 = 8;

/// A few streams with memory of their own, each worked on by one thread at a time.
pub struct Lanes {
    driver: Arc<dyn Driver>,
    bytes: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Lane>,
    failed: bool,
}

/// A stream, memory on the device, and as much pinned memory of the host.
struct Lane {
    driver: Arc<dyn Driver>,
    stream: Stream,
    pinned: NonNull<u8>,
    memory: Address,
    bytes: usize,
}

// SAFETY: the pinned memory belongs to the lane alone, and drivers may be called from any thread.
unsafe impl Send for Lane {}

impl Lanes {
    /// `count` lanes of `bytes` on each side.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device or the host has not as much memory.
    pub fn new(driver: Arc<dyn Driver>, count: usize, bytes: usize) -> Result<Self> {
        let idle = (0..count).map(|_| Lane::new(&driver, bytes)).collect::<Result<_>>()?;
        Ok(Self { driver, bytes, state: Mutex::new(State { idle, failed: false }), returned: Condvar::new() })
    }

    /// The device.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// The most elements, whole chunks, that a lane holds of inputs of these types and an output of type `out`.
    pub fn capacity(&self, inputs: &[Dtype], out: Dtype) -> usize {
        Layout::capacity(inputs, out, self.bytes)
    }

    /// A lane of one's own, waiting until one is idle.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] once a lane has failed: nothing that the device still gives is worth anything.
    pub fn take(&self) -> Result<Taken<'_>> {
        let mut state = self.lock();
        loop {
            if state.failed {
                return Err(Error::new(
                    Kind::Device,
                    "device has failed",
                    self.driver.name(),
                    "work before this failed",
                ));
            }
            match state.idle.pop() {
                Some(lane) => return Ok(Taken { lanes: self, lane: Some(lane), sound: true }),
                None => state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let stream = driver.stream()?;
        let made = driver.pin(bytes).and_then(|pinned| match driver.allocate(bytes) {
            Ok(memory) => Ok((pinned, memory)),
            Err(error) => {
                // SAFETY: it was just taken, and nothing was queued.
                unsafe { driver.unpin(pinned) }
                Err(error)
            }
        });
        match made {
            Ok((pinned, memory)) => Ok(Self { driver: Arc::clone(driver), stream, pinned, memory, bytes }),
            Err(error) => {
                // SAFETY: it was just made, and nothing was queued.
                unsafe { driver.close(stream) }
                Err(error)
            }
        }
    }

    /// A part of the pinned memory; nothing that was queued may be under way in it.
    fn host(&mut self, part: Range<usize>) -> &mut [u8] {
        assert!(part.start <= part.end && part.end <= self.bytes, "a part beyond the lane");
        // SAFETY: the memory is the lane's own and has the part; the caller has waited for what was queued in it.
        unsafe { std::slice::from_raw_parts_mut(self.pinned.as_ptr().add(part.start), part.len()) }
    }

    fn copy_in(&self, part: Range<usize>) -> Result<()> {
        assert!(part.end <= self.bytes, "a part beyond the lane");
        // SAFETY: both memories have the part; `Resident` waits before it touches the host's again.
        unsafe {
            let from = self.pinned.as_ptr().add(part.start);
            self.driver.copy_in(self.stream, from, self.memory.at(part.start), part.len())
        }
    }

    fn copy_out(&self, part: Range<usize>) -> Result<()> {
        assert!(part.end <= self.bytes, "a part beyond the lane");
        // SAFETY: as above.
        unsafe {
            let to = self.pinned.as_ptr().add(part.start);
            self.driver.copy_out(self.stream, self.memory.at(part.start), to, part.len())
        }
    }

    fn launch(&self, kernel: Kernel, grid: [usize; 2], arguments: &[Argument]) -> Result<()> {
        let grid = grid.map(word);
        // SAFETY: the arguments are made by `Resident` for its layout, which lies in the lane's memory.
        unsafe { self.driver.launch(self.stream, kernel, grid, arguments) }
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream is the lane's own.
        unsafe { self.driver.wait(self.stream) }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // What was queued must not run on in memory that is gone; where waiting fails, nothing runs any more.
        let _ = self.wait();
        // SAFETY: all of it is the lane's own, and nothing is under way.
        unsafe {
            self.driver.free(self.memory);
            self.driver.unpin(self.pinned);
            self.driver.close(self.stream);
        }
    }
}

/// A lane of one's own until it is dropped.
pub struct Taken<'a> {
    lanes: &'a Lanes,
    lane: Option<Lane>,
    /// Everything that was asked of it was done.
    sound: bool,
}

impl Taken<'_> {
    /// Brings elements over: as many of each input, no more than the lane's capacity for an output of type `out`.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device fails.
    pub fn load(&mut self, inputs: &[Elements<'_>], out: Dtype) -> Result<Resident<'_>> {
        let len = inputs.first().map_or(0, Elements::len);
        assert!(inputs.iter().all(|input| input.len() == len), "inputs differ in length");
        let dtypes: Vec<Dtype> = inputs.iter().map(|input| input.dtype).collect();
        let layout = Layout::new(&dtypes, out, len);
        let lane = self.lane.as_mut().expect("a lane is there until it is dropped");
        assert!(layout.bytes() <= lane.bytes, "more elements than the lane holds");
        self.sound = false;
        // Who had the lane before may have left without asking for anything.
        lane.wait()?;
        let memory = lane.memory;
        let records = lane.host(layout.inputs.clone()).chunks_exact_mut(RECORD);
        for ((record, input), part) in records.zip(inputs).zip(&layout.elements) {
            record[..8].copy_from_slice(&memory.at(part.start).0.to_le_bytes());
            record[8..12].copy_from_slice(&code(input.dtype).to_le_bytes());
        }
        for (input, part) in inputs.iter().zip(&layout.elements) {
            lane.host(part.clone()).copy_from_slice(input.bytes);
        }
        let end = layout.elements.last().map_or(layout.inputs.end, |last| last.end);
        lane.copy_in(layout.inputs.start..end)?;
        self.sound = true;
        Ok(Resident { lane, sound: &mut self.sound, layout, dtypes, out, len })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let lane = self.lane.take();
        let mut state = self.lanes.lock();
        if self.sound {
            state.idle.extend(lane);
        } else {
            state.failed = true;
        }
        drop(state);
        self.lanes.returned.notify_all();
    }
}

/// How a piece is combined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix<'a> {
    /// By these weights, one for each input; those of weight zero take no part.
    Weights(&'a [f64]),
    /// One input's elements are taken, converted where its type is not the output's.
    Only(usize),
}

/// Elements in a lane's memory on the device, until this is dropped.
pub struct Resident<'a> {
    lane: &'a mut Lane,
    sound: &'a mut bool,
    layout: Layout,
    dtypes: Vec<Dtype>,
    out: Dtype,
    len: usize,
}

impl Resident<'_> {
    /// Writes the inner products of every pair of inputs, piece by piece, as
    /// [`Kernels::gram`](crate::kernel::Kernels::gram) does it for a chunk.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device fails.
    ///
    /// # Panics
    ///
    /// When `sums` does not hold one number for each piece and pair.
    pub fn gram(&mut self, pieces: &[Range<usize>], options: Gram, sums: &mut [f64]) -> Result<()> {
        let count = self.dtypes.len();
        let pairs = pair_count(count);
        assert_eq!(sums.len(), pieces.len() * pairs, "sums are not one for each piece and pair");
        if sums.is_empty() {
            return Ok(());
        }
        self.put_pieces(pieces, |_| NONE)?;
        // The products of wide elements or of differences are rounded, so they must not be fused into the sums.
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
        self.lane.launch(Kernel::Gram, [pieces.len(), pair_count(tiles)], &arguments)?;
        let part = self.layout.sums.start..self.layout.sums.start + size_of_val(sums);
        for (sum, bytes) in sums.iter_mut().zip(self.fetch(part)?.as_chunks().0) {
            *sum = f64::from_le_bytes(*bytes);
        }
        self.done();
        Ok(())
    }

    /// For each piece, whether an element of any input is NaN or infinite.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device fails.
    pub fn nonfinite(&mut self, pieces: &[Range<usize>]) -> Result<Vec<bool>> {
        let first = self.first_nonfinite(pieces)?;
        Ok(first.chunks(self.dtypes.len().max(1)).map(|piece| piece.iter().any(Option::is_some)).collect())
    }

    /// For each piece and input, the place in the piece of the first element that is NaN or infinite.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device fails.
    pub fn first_nonfinite(&mut self, pieces: &[Range<usize>]) -> Result<Vec<Option<usize>>> {
        let count = self.dtypes.len();
        if pieces.is_empty() || count == 0 {
            return Ok(vec![]);
        }
        let part = self.layout.first.start..self.layout.first.start + pieces.len() * count * size_of::<u32>();
        self.put_pieces(pieces, |_| NONE)?;
        self.lane.host(part.clone()).fill(u8::MAX);
        self.lane.copy_in(part.clone())?;
        let arguments = [
            self.address(self.layout.inputs.start),
            self.address(self.layout.pieces.start),
            Argument::Word(word(count)),
            self.address(part.start),
        ];
        self.lane.launch(Kernel::Scan, [pieces.len(), count], &arguments)?;
        let places = self.fetch(part)?.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let first = places.map(|place| (place != NONE).then_some(place as usize)).collect();
        self.done();
        Ok(first)
    }

    /// Combines the pieces, which lie behind one another from the first element on, into `dst` with one rounding, as
    /// [`Kernels::combine`](crate::kernel::Kernels::combine) and [`Kernels::convert`](crate::kernel::Kernels::convert)
    /// do; returns how many finite values overflowed.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device fails.
    ///
    /// # Panics
    ///
    /// When `dst` does not hold all elements.
    pub fn combine(&mut self, pieces: &[(Range<usize>, Mix<'_>)], dst: &mut [u8]) -> Result<u64> {
        assert_eq!(dst.len(), self.len * self.out.bytes(), "the output is not as long as the inputs");
        let count = self.dtypes.len();
        if pieces.is_empty() {
            return Ok(0);
        }
        let same = |input: usize| self.dtypes[input] == self.out;
        let copied: Vec<u32> = pieces
            .iter()
            .map(|(_, mix)| {
                if let Mix::Only(input) = mix
                    && same(*input)
                {
                    word(*input)
                } else {
                    NONE
                }
            })
            .collect();
        let ranges: Vec<Range<usize>> = pieces.iter().map(|(range, _)| range.clone()).collect();
        self.put_pieces(&ranges, |piece| copied[piece])?;
        self.put_weights(pieces);
        let overflows = self.layout.overflows.clone();
        self.lane.host(overflows.clone()).fill(0);
        let end = self.layout.weights.start + pieces.len() * count * size_of::<f64>();
        self.lane.copy_in(self.layout.weights.start..end)?;
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
        self.lane.launch(Kernel::Combine, [pieces.len(), SHARES as usize], &arguments)?;
        self.lane.copy_out(overflows.clone())?;
        let part = self.layout.output.clone();
        dst.copy_from_slice(self.fetch(part)?);
        let counted = self.lane.host(overflows).as_chunks().0.first().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.done();
        Ok(counted)
    }

    /// The rows of weights; an input that is converted has the weight one.
    fn put_weights(&mut self, pieces: &[(Range<usize>, Mix<'_>)]) {
        let count = self.dtypes.len();
        let rows = self.lane.host(self.layout.weights.clone()).as_chunks_mut::<8>().0.chunks_exact_mut(count.max(1));
        for (row, (_, mix)) in rows.zip(pieces) {
            for (input, weight) in row.iter_mut().enumerate() {
                let value = match mix {
                    Mix::Weights(weights) => weights[input],
                    Mix::Only(only) => f64::from(u8::from(*only == input)),
                };
                *weight = value.to_le_bytes();
            }
        }
    }

    /// Brings the table of pieces over; until the work that begins with it is done, the lane is not sound.
    fn put_pieces(&mut self, pieces: &[Range<usize>], copied: impl Fn(usize) -> u32) -> Result<()> {
        assert!(pieces.len() <= self.layout.most_pieces(), "more pieces than there is room for");
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

/// A count as the kernels take it.
fn word(count: usize) -> u32 {
    u32::try_from(count).expect("a lane holds fewer than 2^32 elements")
}
