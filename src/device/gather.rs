//! Reordered columns on a device.

use std::ops::Range;

use super::cut::ALIGNMENT;
use super::lanes::{Lane, LaneGuard};
use super::layout::code;
use super::resident::word;
use super::{Argument, Kernel};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::Elements;
use crate::linalg::Columns;

/// The most blocks of threads that share the rows; enough for every device.
const SHARES: usize = 1024;

/// The ranges in a lane, in bytes, of the rows before and after, and of the places.
pub(super) struct Moved {
    pub from: Range<usize>,
    pub places: Range<usize>,
    pub into: Range<usize>,
}

impl Moved {
    /// Lays out `bytes` of rows of `columns` columns, from `begin` on.
    pub fn new(begin: usize, bytes: usize, columns: usize) -> Self {
        let part = |begin: usize, bytes: usize| begin..begin + bytes;
        let from = part(begin, bytes);
        let places = part(
            from.end.next_multiple_of(ALIGNMENT),
            columns * size_of::<u32>(),
        );
        let into = part(places.end.next_multiple_of(ALIGNMENT), bytes);
        Self { from, places, into }
    }

    /// Puts the places into the lane's memory on the host.
    pub fn put_places(&self, lane: &mut Lane, columns: &Columns) {
        let places = lane.host(self.places.clone()).as_chunks_mut().0;
        places
            .iter_mut()
            .zip(columns.places())
            .for_each(|(into, place)| *into = place.to_le_bytes());
    }

    /// Queues the kernel; the rows and the places must have been queued.
    pub fn launch(&self, lane: &Lane, dtype: Dtype, columns: usize) -> Result<()> {
        let rows = self.from.len() / (columns * dtype.bytes()).max(1);
        if rows == 0 {
            return Ok(());
        }
        let address = |part: &Range<usize>| Argument::Address(lane.memory.at(part.start));
        let arguments = [
            address(&self.from),
            address(&self.into),
            Argument::Word(word(rows)),
            Argument::Word(word(columns)),
            Argument::Word(code(dtype)),
            address(&self.places),
        ];
        lane.launch(
            Kernel::Gather,
            [columns.div_ceil(Kernel::BLOCK as usize), rows.min(SHARES)],
            &arguments,
        )
    }
}

impl LaneGuard<'_> {
    /// Bytes of a lane that reorders `bytes` of rows of `columns` columns.
    pub fn gather_bytes(bytes: usize, columns: usize) -> usize {
        Moved::new(0, bytes, columns).into.end
    }

    /// Fills `into` with rows whose columns are reordered.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when the device fails.
    ///
    /// # Panics
    ///
    /// Panics if `into` is not as long as the rows, or the lane is too small.
    pub fn gather(&mut self, rows: Elements<'_>, columns: &Columns, into: &mut [u8]) -> Result<()> {
        assert_eq!(rows.bytes.len(), into.len(), "as many rows as before");
        let moved = Moved::new(0, rows.bytes.len(), columns.len());
        self.work(|lane| {
            lane.wait()?;
            lane.host(moved.from.clone()).copy_from_slice(rows.bytes);
            moved.put_places(lane, columns);
            lane.copy_in(moved.from.start..moved.places.end)?;
            moved.launch(lane, rows.dtype, columns.len())?;
            lane.copy_out(moved.into.clone())?;
            lane.wait()?;
            into.copy_from_slice(lane.host(moved.into.clone()));
            Ok(())
        })
    }
}
