//! Sums of products of matrices on a device.
//!
//! The entries of a sum stay in the device's memory from its first product to its end. Factors are
//! copied through two lanes in turn: while one lane's factors are multiplied, the next ones are
//! copied into the other, and the caller reads those after them. A product begins when the one
//! before it is done, since both add to the same entries, so that sums have one order. Factors
//! larger than a lane are cut, along the terms of the sums only at multiples of
//! [`DEPTH`](super::multiplication::DEPTH): with [`Kernel::Product`](super::Kernel::Product) the
//! bits depend neither on the cuts nor on the memory. The vendor's library has orders of its own.
//!
//! A sum with more entries than the device has room for stays on the host: part by part it is
//! copied to the device, the products are added, and it is fetched back.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::cut::{self, ALIGNMENT, LEAST_LANE, ProductPart, UNIT};
use super::factors::{Factors, PIECE};
use super::lanes::Lane;
use super::multiplication::{Factor, Multiplication, SQUARE};
use super::{Address, Driver};
use crate::budget::format_bytes;
use crate::error::{Error, Kind, Result};
use crate::linalg::{Adder, Columns, Matrix, Sum};

/// The largest lane, in bytes: 512 features of 16384 units on either side fit it in one copy each.
const LANE_CAP: usize = 64 << 20;
/// A lane takes at most this fraction of the memory on either side, if that is enough.
const HOST_SHARE: u64 = 16;
const DEVICE_SHARE: u64 = 8;

/// Adds products up on a device.
pub struct Products {
    driver: Arc<dyn Driver>,
    /// The most entries of a sum that stays on the device.
    most: usize,
    own_kernel: bool,
    room: Mutex<Room>,
}

/// The lanes and memory on the device, used by one sum at a time.
struct Room {
    driver: Arc<dyn Driver>,
    lanes: [Lane; 2],
    /// The lane that is filled next; it is idle.
    next: usize,
    /// The memory for entries, and its number of entries.
    entries: Option<(Address, usize)>,
    failed: bool,
}

/// Bytes of each lane, within `host` and `device` bytes of memory.
///
/// # Errors
///
/// [`Kind::Device`] with the least that is needed, when the device's memory is smaller.
fn lane_bytes(host: u64, device: u64) -> Result<usize> {
    let least = (2 * LEAST_LANE + SQUARE * SQUARE * UNIT) as u64;
    if device < least {
        let cause = format!("products of matrices need at least {}", format_bytes(least));
        return Err(Error::new(
            Kind::Device,
            "device memory is too small",
            format_bytes(device),
            cause,
        )
        .with_hint(format!(
            "give --device-memory {}MiB or more, or leave out --device",
            least.div_ceil(1 << 20)
        )));
    }
    let share = usize::try_from((host / HOST_SHARE).min(device / DEVICE_SHARE)).unwrap_or(LANE_CAP);
    Ok(share.clamp(LEAST_LANE, LANE_CAP) / ALIGNMENT * ALIGNMENT)
}

impl Products {
    /// Bytes of the host's memory that are pinned, within `host` and `device` bytes of memory.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device's memory is too small.
    pub fn pinned_bytes(host: u64, device: u64) -> Result<u64> {
        Ok(2 * lane_bytes(host, device)? as u64)
    }

    /// Prepares `driver` to multiply within `host` and `device` bytes of memory.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when the device's memory is too small, or either cannot be allocated.
    pub fn new(driver: Arc<dyn Driver>, host: u64, device: u64) -> Result<Self> {
        let bytes = lane_bytes(host, device)?;
        let lane = || Lane::new(&driver, bytes);
        let lanes = [lane()?, lane()?];
        let most = usize::try_from(device)
            .unwrap_or(usize::MAX)
            .saturating_sub(2 * bytes)
            / UNIT;
        let room = Room {
            driver: Arc::clone(&driver),
            lanes,
            next: 0,
            entries: None,
            failed: false,
        };
        Ok(Self {
            driver,
            most,
            own_kernel: false,
            room: Mutex::new(room),
        })
    }

    /// Uses [`Kernel::Product`](super::Kernel::Product) even if a faster library is loaded, to
    /// compare both.
    #[must_use]
    pub fn with_own_kernel(self) -> Self {
        Self {
            own_kernel: true,
            ..self
        }
    }
}

impl Adder for Products {
    fn begin<'a>(&'a self, rows: usize, result: &'a mut [f32]) -> Result<Box<dyn Sum + 'a>> {
        // After a panic, the lanes are waited for before they are used again.
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.failed {
            let cause = "work before this failed";
            return Err(Error::new(
                Kind::Device,
                "device has failed",
                self.driver.name(),
                cause,
            ));
        }
        let columns = result.len() / rows.max(1);
        let stays = result.len() <= self.most;
        if stays {
            room.make_room(result.len())?;
        } else {
            result.fill(0.0);
        }
        Ok(Box::new(Running {
            room,
            own_kernel: self.own_kernel,
            rows,
            columns,
            result,
            stays,
            fresh: true,
            done: false,
        }))
    }

    fn most_entries(&self) -> usize {
        self.most
    }
}

/// A sum whose products are being added.
struct Running<'a> {
    room: MutexGuard<'a, Room>,
    own_kernel: bool,
    rows: usize,
    columns: usize,
    result: &'a mut [f32],
    /// True if the entries stay on the device.
    stays: bool,
    /// True until a product is added.
    fresh: bool,
    done: bool,
}

impl Sum for Running<'_> {
    fn add(&mut self, scale: f32, left: Matrix<'_>, right: Matrix<'_>) -> Result<()> {
        self.add_factors(
            scale,
            &Factors {
                left,
                right,
                columns: None,
            },
        )
    }

    fn add_gathered(
        &mut self,
        scale: f32,
        left: Matrix<'_>,
        right: Matrix<'_>,
        columns: &Columns,
    ) -> Result<()> {
        assert!(
            !right.is_transposed() && right.columns() == columns.len(),
            "rows of as many columns"
        );
        self.add_factors(
            scale,
            &Factors {
                left,
                right,
                columns: Some(columns),
            },
        )
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let Running {
            room,
            result,
            stays,
            fresh,
            ..
        } = &mut *self;
        match (*stays, *fresh) {
            (true, true) => result.fill(0.0),
            (true, false) => room.fetch(result)?,
            (false, _) => {}
        }
        self.done = true;
        Ok(())
    }
}

impl Running<'_> {
    fn add_factors(&mut self, scale: f32, factors: &Factors<'_>) -> Result<()> {
        let Factors {
            left,
            right,
            columns,
        } = factors;
        assert_eq!(left.columns(), right.rows(), "the inner sizes of a product");
        assert_eq!(left.rows(), self.rows, "the result of a product");
        assert_eq!(
            left.rows() * right.columns(),
            self.result.len(),
            "the result of a product"
        );
        let (depth, lane) = (left.columns(), self.room.lanes[0].bytes());
        if self.result.is_empty() || depth == 0 {
            return Ok(());
        }
        let gathered = cut::gathered_terms(self.rows, self.columns, lane)
            .filter(|_| self.stays && columns.is_some());
        if let Some(step) = gathered {
            self.add_gathered(scale, factors, step)?;
        } else if self.stays {
            for part in cut::there(self.rows, self.columns, lane) {
                for terms in cut::terms(&part, depth, lane) {
                    self.add_brought(scale, &part, &terms, |lane| {
                        factors.bring(lane, 0, &part, &terms)
                    })?;
                }
            }
        } else {
            let parts = cut::carried(self.rows, self.columns, lane);
            parts
                .iter()
                .try_for_each(|part| self.add_carried(scale, factors, part))?;
        }
        self.fresh = false;
        Ok(())
    }

    /// Adds a product whose columns the device reorders, `step` terms at a time.
    fn add_gathered(&mut self, scale: f32, factors: &Factors<'_>, step: usize) -> Result<()> {
        let depth = factors.left.columns();
        let whole = ProductPart {
            rows: 0..self.rows,
            columns: 0..self.columns,
        };
        for start in (0..depth).step_by(step) {
            let terms = start..depth.min(start + step);
            self.add_brought(scale, &whole, &terms, |lane| {
                factors.bring_apart(lane, &whole, &terms)
            })?;
        }
        Ok(())
    }

    /// Adds some terms to a part of a result that stays on the device; `bring` queues the copy of
    /// their factors.
    fn add_brought(
        &mut self,
        scale: f32,
        part: &ProductPart,
        terms: &Range<usize>,
        bring: impl FnOnce(&mut Lane) -> Result<[Factor; 2]>,
    ) -> Result<()> {
        let (rows, columns, depth) = (part.rows.len(), part.columns.len(), terms.len());
        let (sums, stride) = (
            self.room
                .entry(part.rows.start * self.columns + part.columns.start),
            self.columns,
        );
        let fresh = self.fresh && terms.start == 0;
        let at = self.room.next;
        let [left, right] = bring(&mut self.room.lanes[at])?;
        // Waits for the product before this one, which adds to the same entries.
        self.room.lanes[1 - at].wait()?;
        let product = Multiplication {
            left,
            right,
            sums,
            stride,
            rows,
            columns,
            depth,
            scale,
            fresh,
        };
        self.room.lanes[at].multiply(&product, self.own_kernel)?;
        self.room.next = 1 - at;
        Ok(())
    }

    /// Adds the product to a part of a result that stays on the host.
    fn add_carried(&mut self, scale: f32, factors: &Factors<'_>, part: &ProductPart) -> Result<()> {
        let lane = &mut self.room.lanes[0];
        let (rows, columns) = (part.rows.len(), part.columns.len());
        let bytes = rows * columns * UNIT;
        let begin = bytes.next_multiple_of(ALIGNMENT);
        let there = part
            .rows
            .clone()
            .map(|row| row * self.columns + part.columns.start);
        let own =
            bytemuck::cast_slice_mut::<u8, f32>(lane.host(0..bytes)).chunks_exact_mut(columns);
        own.zip(there.clone())
            .for_each(|(own, at)| own.copy_from_slice(&self.result[at..at + columns]));
        lane.copy_in(0..bytes)?;
        for terms in cut::terms(part, factors.left.columns(), lane.bytes() - begin) {
            let depth = terms.len();
            let [left, right] = factors.bring(lane, begin, part, &terms)?;
            let (sums, stride, fresh) = (lane.memory, columns, false);
            let product = Multiplication {
                left,
                right,
                sums,
                stride,
                rows,
                columns,
                depth,
                scale,
                fresh,
            };
            lane.multiply(&product, self.own_kernel)?;
            lane.wait()?;
        }
        lane.copy_out(0..bytes)?;
        lane.wait()?;
        let own = bytemuck::cast_slice::<u8, f32>(lane.host(0..bytes)).chunks_exact(columns);
        own.zip(there)
            .for_each(|(own, at)| self.result[at..at + columns].copy_from_slice(own));
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The caller has given up, or the device has failed: if both lanes end without an
            // error, the next sum can use them.
            let failed = self.room.lanes.each_ref().map(|lane| lane.wait().is_err());
            self.room.failed |= failed.contains(&true);
        }
    }
}

impl Room {
    /// Allocates memory for `entries` entries unless there is enough; the lanes must be idle.
    fn make_room(&mut self, entries: usize) -> Result<()> {
        if self.entries.is_some_and(|(_, there)| there >= entries) || entries == 0 {
            return Ok(());
        }
        self.give_back();
        self.entries = Some((self.driver.allocate(entries * UNIT)?, entries));
        Ok(())
    }

    fn give_back(&mut self) {
        if let Some((memory, _)) = self.entries.take() {
            // SAFETY: it was allocated here, and every sum has waited for what it had queued.
            unsafe { self.driver.free(memory) }
        }
    }

    /// The address of entry number `at`.
    fn entry(&self, at: usize) -> Address {
        self.entries
            .map_or(Address(0), |(memory, _)| memory.at(at * UNIT))
    }

    /// Fetches as many entries as `result` holds, after all queued work is done: while one lane
    /// copies, the entries in the other are moved to `result`.
    fn fetch(&mut self, result: &mut [f32]) -> Result<()> {
        self.lanes.iter().try_for_each(Lane::wait)?;
        let count = self.lanes[0].bytes() / UNIT;
        let mut under_way: Option<(usize, &mut [f32])> = None;
        for (at, piece) in result.chunks_mut(count).enumerate() {
            let from = self.entry(at * count);
            self.lanes[at % 2].fetch(from, 0..piece.len() * UNIT)?;
            if let Some((lane, piece)) = under_way.replace((at % 2, piece)) {
                self.lanes[lane].wait()?;
                copy(
                    bytemuck::cast_slice(self.lanes[lane].host(0..piece.len() * UNIT)),
                    piece,
                );
            }
        }
        if let Some((lane, piece)) = under_way {
            self.lanes[lane].wait()?;
            copy(
                bytemuck::cast_slice(self.lanes[lane].host(0..piece.len() * UNIT)),
                piece,
            );
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn copy(from: &[f32], into: &mut [f32]) {
    into.par_chunks_mut(PIECE)
        .zip(from.par_chunks(PIECE))
        .for_each(|(into, from)| into.copy_from_slice(from));
}
