//! Plain files through a memory map whose pages are given back as soon as no window needs them.

use std::hint::black_box;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::header::within;
use super::source::{Input, Source, Window};
use crate::error::{Error, Kind, Result};

/// A fault maps up to this much around the page that was asked for; also no page is bigger.
const FAULT_AROUND_BYTES: usize = 64 << 10;
/// A large folio may be mapped as a whole, however little of it was asked for.
const FOLIO_BYTES: usize = 2 << 20;

/// A mapped input file.
pub(super) struct MapSource {
    input: Input,
    mapping: Arc<Mapping>,
}

impl MapSource {
    pub fn new(input: Input) -> Result<Self> {
        // SAFETY: the map is read-only and private to this module. A file that changes under it can show other bytes or
        // raise SIGBUS past a new end, never invalid Rust values (bytes are u8); length and time are checked at every
        // load, and `Io::Positioned` is there for files that others write to.
        let map = unsafe { Mmap::map(&input.file) }.map_err(|error| Error::io("cannot map", &input.path, error))?;
        if map.len() as u64 != input.identity.len {
            input.unchanged()?;
        }
        // A refusal of the advice costs read-ahead only.
        let _ = map.advise(Advice::Sequential);
        Ok(Self { input, mapping: Arc::new(Mapping { map, live: Mutex::default() }) })
    }

    fn place(&self, range: &Range<u64>) -> Result<Range<usize>> {
        within(range, self.len(), &self.input.path)?;
        let place = |value: u64| {
            usize::try_from(value).map_err(|error| Error::new(Kind::Io, "cannot map", self.path().display(), error))
        };
        Ok(place(range.start)?..place(range.end)?)
    }
}

impl Source for MapSource {
    fn path(&self) -> &Path {
        &self.input.path
    }

    fn len(&self) -> u64 {
        self.input.identity.len
    }

    fn prefetch(&self, range: Range<u64>) {
        if let Ok(range) = self.place(&range) {
            let _ = self.mapping.map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    fn load(&self, range: Range<u64>) -> Result<Window> {
        let range = self.place(&range)?;
        self.input.unchanged()?;
        let window = MappedWindow::register(&self.mapping, range);
        if let Err(error) = self.mapping.populate(&window.range) {
            // A cut file is the usual reason, and the better message.
            self.input.unchanged()?;
            return Err(Error::io("cannot read", &self.input.path, error));
        }
        self.input.unchanged()?;
        Ok(window.into())
    }

    fn overhead_bytes(&self) -> u64 {
        size_of::<Self>() as u64
    }
}

struct Mapping {
    map: Mmap,
    /// Ranges of the windows that are out; pages of these are never given back.
    live: Mutex<Vec<Range<usize>>>,
}

impl Mapping {
    /// Brings the pages of `range` into memory and into the page table.
    fn populate(&self, range: &Range<usize>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        match self.map.advise_range(Advice::PopulateRead, range.start, range.len()) {
            // The kernel is older than 5.14.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.touch(range);
                Ok(())
            }
            done => done,
        }
    }

    /// Reads one byte of every page, so that the faults happen here.
    fn touch(&self, range: &Range<usize>) {
        for at in range.clone().step_by(4096).chain(range.end.checked_sub(1)) {
            black_box(self.map[at]);
        }
    }

    fn release(&self, range: &Range<usize>) {
        // NOTE: held across the advice, so that a window loaded meanwhile does not lose pages it has just got.
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = live.iter().position(|window| window == range) {
            live.swap_remove(position);
        }
        for gap in given_back(range, &live, self.map.len()) {
            // SAFETY: the map is read-only and backed by a file: a dropped page is read from the file again when it is
            // touched again, so no live reference sees other bytes than before.
            let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, gap.start, gap.len()) };
            debug_assert!(advised.is_ok(), "MADV_DONTNEED inside a map is not refused: {advised:?}");
        }
    }
}

/// What to give back when the window `dropped` of a map of `len` bytes goes: its surroundings as far as a fault can have
/// mapped them, less the pages of windows that are still `live`; the whole map with the last window.
fn given_back(dropped: &Range<usize>, live: &[Range<usize>], len: usize) -> Vec<Range<usize>> {
    if live.is_empty() {
        return std::iter::once(0..len).collect();
    }
    let round = |range: &Range<usize>, unit: usize| {
        range.start / unit * unit..range.end.checked_next_multiple_of(unit).unwrap_or(len).min(len)
    };
    let mut kept: Vec<_> =
        live.iter().filter(|range| !range.is_empty()).map(|range| round(range, FAULT_AROUND_BYTES)).collect();
    kept.sort_unstable_by_key(|range| range.start);
    let whole = round(dropped, FOLIO_BYTES);
    let mut gaps = Vec::new();
    let mut at = whole.start;
    for range in kept {
        if at < range.start.min(whole.end) {
            gaps.push(at..range.start.min(whole.end));
        }
        at = at.max(range.end);
    }
    if at < whole.end {
        gaps.push(at..whole.end);
    }
    gaps
}

/// A range of a mapped file; its pages go when it is dropped.
pub(super) struct MappedWindow {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl MappedWindow {
    fn register(mapping: &Arc<Mapping>, range: Range<usize>) -> Self {
        mapping.live.lock().unwrap_or_else(PoisonError::into_inner).push(range.clone());
        Self { mapping: Arc::clone(mapping), range }
    }
}

impl Deref for MappedWindow {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.mapping.map[self.range.clone()]
    }
}

impl Drop for MappedWindow {
    fn drop(&mut self) {
        self.mapping.release(&self.range);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn touching_reaches_the_same_bytes_as_populating() {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        let bytes: Vec<u8> = (0u32..100_000).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
        file.write_all(&bytes).expect("write");
        let source = MapSource::new(Input::open(file.path()).expect("open")).expect("map");
        for range in [0..0, 0..1, 4095..4097, 99_999..100_000, 0..100_000] {
            source.mapping.touch(&range);
            let window = source.load(range.start as u64..range.end as u64).expect("load");
            assert_eq!(*window, bytes[range]);
        }
        assert!(source.mapping.live.lock().expect("no panic held it").is_empty());
    }

    #[test]
    fn the_last_window_takes_the_whole_map_with_it() {
        assert_eq!(given_back(&(10..20), &[], 1 << 30), [0..1 << 30]);
    }

    fn windows() -> impl Strategy<Value = Vec<Range<usize>>> {
        prop::collection::vec((0usize..9 << 20, 0usize..3 << 20).prop_map(|(at, len)| at..at + len), 1..6)
    }

    proptest! {
        #[test]
        fn nothing_of_a_live_window_is_given_back_and_all_else_around_the_dropped_one_is(
            live in windows(), start in 0usize..9 << 20, len in 1usize..3 << 20,
        ) {
            let (dropped, map_len) = (start..start + len, 12 << 20);
            let gaps = given_back(&dropped, &live, map_len);
            let inside = |ranges: &[Range<usize>], at: usize| ranges.iter().any(|range| range.contains(&at));
            for at in (0..map_len).step_by(4096) {
                let given = inside(&gaps, at);
                prop_assert!(!(given && inside(&live, at)));
                let near_live =
                    live.iter().any(|range| !range.is_empty() && at + (64 << 10) > range.start && at < range.end + (64 << 10));
                if dropped.contains(&at) && !near_live {
                    prop_assert!(given);
                }
            }
        }
    }
}
