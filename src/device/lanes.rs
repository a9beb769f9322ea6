//! The lanes: their owners, and their memory on both sides.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::Elements;

use super::layout::{LaneLayout, RECORD, code};
use super::multiplication::Multiplication;
use super::resident::{Resident, word};
use super::{Address, Argument, Driver, Kernel, Stream};

/// A few streams with memory of their own, each used by one thread at a time.
pub struct Lanes {
    driver: Arc<dyn Driver>,
    bytes: usize,
    state: Mutex<LaneState>,
    returned: Condvar,
}

#[derive(Default)]
struct LaneState {
    idle: Vec<Lane>,
    failed: bool,
}

/// A stream, memory on the device, and as much pinned memory of the host.
pub(super) struct Lane {
    driver: Arc<dyn Driver>,
    stream: Stream,
    pinned: NonNull<u8>,
    pub(super) memory: Address,
    bytes: usize,
}

// SAFETY: the pinned memory belongs to the lane alone, and drivers may be called from any thread.
unsafe impl Send for Lane {}

impl Lanes {
    /// `count` lanes of `bytes` on each side.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device or the host lacks the memory.
    pub fn new(driver: Arc<dyn Driver>, count: usize, bytes: usize) -> Result<Self> {
        let idle = (0..count)
            .map(|_| Lane::new(&driver, bytes))
            .collect::<Result<_>>()?;
        Ok(Self {
            driver,
            bytes,
            state: Mutex::new(LaneState {
                idle,
                failed: false,
            }),
            returned: Condvar::new(),
        })
    }

    /// The device.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// The most elements, in whole chunks, that a lane holds for inputs of these types and an
    /// output of type `out`.
    pub fn capacity(&self, inputs: &[Dtype], out: Dtype) -> usize {
        LaneLayout::capacity(inputs, out, self.bytes)
    }

    /// Takes a lane, waiting until one is idle.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] once a lane has failed: results of the device are no longer trusted.
    pub fn take(&self) -> Result<LaneGuard<'_>> {
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
                Some(lane) => {
                    return Ok(LaneGuard {
                        lanes: self,
                        lane: Some(lane),
                        sound: true,
                    });
                }
                None => {
                    state = self
                        .returned
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    pub(super) fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let stream = driver.stream()?;
        let made = driver
            .pin(bytes)
            .and_then(|pinned| match driver.allocate(bytes) {
                Ok(memory) => Ok((pinned, memory)),
                Err(error) => {
                    // SAFETY: it was just taken, and nothing was queued.
                    unsafe { driver.unpin(pinned) }
                    Err(error)
                }
            });
        match made {
            Ok((pinned, memory)) => Ok(Self {
                driver: Arc::clone(driver),
                stream,
                pinned,
                memory,
                bytes,
            }),
            Err(error) => {
                // SAFETY: it was just made, and nothing was queued.
                unsafe { driver.close(stream) }
                Err(error)
            }
        }
    }

    /// Bytes on each side.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A part of the pinned memory; no queued copy may still use it.
    pub(super) fn host(&mut self, part: Range<usize>) -> &mut [u8] {
        assert!(
            part.start <= part.end && part.end <= self.bytes,
            "a part beyond the lane"
        );
        // SAFETY: the memory is the lane's own and has the part; the caller has waited for what was
        // queued in it.
        unsafe { std::slice::from_raw_parts_mut(self.pinned.as_ptr().add(part.start), part.len()) }
    }

    pub(super) fn copy_in(&self, part: Range<usize>) -> Result<()> {
        assert!(part.end <= self.bytes, "a part beyond the lane");
        // SAFETY: both memories have the part; the lane's user waits before it touches the host's
        // again.
        unsafe {
            let from = self.pinned.as_ptr().add(part.start);
            self.driver
                .copy_in(self.stream, from, self.memory.at(part.start), part.len())
        }
    }

    pub(super) fn copy_out(&self, part: Range<usize>) -> Result<()> {
        assert!(part.end <= self.bytes, "a part beyond the lane");
        // SAFETY: as above.
        unsafe {
            let to = self.pinned.as_ptr().add(part.start);
            self.driver
                .copy_out(self.stream, self.memory.at(part.start), to, part.len())
        }
    }

    /// Queues a copy from elsewhere on the device into a part of the pinned memory.
    pub(super) fn fetch(&self, from: Address, part: Range<usize>) -> Result<()> {
        assert!(part.end <= self.bytes, "a part beyond the lane");
        // SAFETY: as above; `from` begins as much memory of the same driver.
        unsafe {
            self.driver.copy_out(
                self.stream,
                from,
                self.pinned.as_ptr().add(part.start),
                part.len(),
            )
        }
    }

    /// Queues a product, by `Kernel::Product` if `must` is set.
    pub(super) fn multiply(&self, product: &Multiplication, must: bool) -> Result<()> {
        // SAFETY: `Products` lays factors and sums out in memory of the same driver, as large as
        // the product says.
        unsafe {
            match must {
                true => self.driver.launch(
                    self.stream,
                    Kernel::Product,
                    product.grid(),
                    &product.arguments(),
                ),
                false => self.driver.multiply(self.stream, product),
            }
        }
    }

    pub(super) fn launch(
        &self,
        kernel: Kernel,
        grid: [usize; 2],
        arguments: &[Argument],
    ) -> Result<()> {
        let grid = grid.map(word);
        // SAFETY: the arguments are made by `Resident` for its layout, which lies in the lane's
        // memory.
        unsafe { self.driver.launch(self.stream, kernel, grid, arguments) }
    }

    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the stream is the lane's own.
        unsafe { self.driver.wait(self.stream) }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Queued work must end before its memory is freed; if waiting fails, no work is running any
        // more.
        let _ = self.wait();
        // SAFETY: all of it is the lane's own, and nothing is under way.
        unsafe {
            self.driver.free(self.memory);
            self.driver.unpin(self.pinned);
            self.driver.close(self.stream);
        }
    }
}

/// A lane that is taken until this is dropped.
pub struct LaneGuard<'a> {
    lanes: &'a Lanes,
    lane: Option<Lane>,
    /// True if all work asked of the lane was done.
    sound: bool,
}

impl LaneGuard<'_> {
    /// Does some work, after which the lane is sound if the work succeeds.
    pub(super) fn work(&mut self, work: impl FnOnce(&mut Lane) -> Result<()>) -> Result<()> {
        self.sound = false;
        work(
            self.lane
                .as_mut()
                .expect("a lane is there until it is dropped"),
        )?;
        self.sound = true;
        Ok(())
    }

    /// Copies elements to the device: equally many of each input, at most the lane's capacity for
    /// an output of type `out`.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device fails.
    pub fn load(&mut self, inputs: &[Elements<'_>], out: Dtype) -> Result<Resident<'_>> {
        let len = inputs.first().map_or(0, Elements::len);
        assert!(
            inputs.iter().all(|input| input.len() == len),
            "inputs differ in length"
        );
        let dtypes: Vec<Dtype> = inputs.iter().map(|input| input.dtype).collect();
        let layout = LaneLayout::new(&dtypes, out, len);
        let lane = self
            .lane
            .as_mut()
            .expect("a lane is there until it is dropped");
        assert!(
            layout.bytes() <= lane.bytes,
            "more elements than the lane holds"
        );
        self.sound = false;
        // The previous owner may have left without waiting for its work.
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
        let end = layout
            .elements
            .last()
            .map_or(layout.inputs.end, |last| last.end);
        lane.copy_in(layout.inputs.start..end)?;
        self.sound = true;
        Ok(Resident {
            lane,
            sound: &mut self.sound,
            layout,
            dtypes,
            out,
            len,
        })
    }
}

impl Drop for LaneGuard<'_> {
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
