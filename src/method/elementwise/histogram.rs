//! Counted keys of a group, and the thresholds found in them: exact, since counts are integers.

use std::sync::{Mutex, PoisonError};

use crate::kernel::CHUNK;
use crate::kernel::select::{Bins, Edge};

/// Streams that are counted in fine bins; more of them take coarse ones, to stay small.
const MOST_FINE: usize = 8;
/// The most thresholds of one stream: three quartiles.
pub const MOST_EDGES: usize = 3;

/// Gives the keys of a stretch, part by part, to the function that it is called with.
pub type Parts<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&[u32]));

/// Numbers of a group whose keys are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// |δ| of a model.
    Magnitude(usize),
    /// The deviation of all models.
    Deviation,
    /// |δ| of a model times the divergence of its row.
    Importance(usize),
}

/// The keys of a group in a first sweep.
#[derive(Debug)]
pub struct Histogram {
    /// The division into bins.
    pub bins: Bins,
    /// The streams.
    pub streams: Vec<Stream>,
    totals: Vec<Mutex<Totals>>,
}

/// The keys of one stream.
#[derive(Debug)]
enum Totals {
    /// All keys of a short group.
    Listed(Vec<u32>),
    /// The number of keys in each bin.
    Counted(Vec<u64>),
}

/// The place of a threshold after the first sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is this edge.
    Edge(Edge),
    /// It is the `rank`-th largest key, counted from 1, of this bin.
    In {
        /// The bin.
        bin: u32,
        /// The rank within the bin.
        rank: u64,
    },
}

/// The keys of single bins in a second sweep.
#[derive(Debug)]
pub struct Refinement {
    /// The division into bins.
    pub bins: Bins,
    /// The streams, and the bins of each.
    pub streams: Vec<(Stream, Vec<u32>)>,
    totals: Vec<Vec<Mutex<Vec<u64>>>>,
}

/// The division into bins for `streams` streams.
pub fn bins_for(streams: usize) -> Bins {
    if streams <= MOST_FINE {
        Bins::FINE
    } else {
        Bins::COARSE
    }
}

/// The bytes of the counts for `streams` streams, at most.
pub fn total_bytes(streams: usize) -> u64 {
    let bins = bins_for(streams);
    let counts = bins.count().max(MOST_EDGES * bins.keys());
    (streams * counts * size_of::<u64>()) as u64
}

/// The bytes of the counts of one thread.
pub fn worker_bytes(streams: usize) -> u64 {
    let bins = bins_for(streams);
    let counts = bins.count().max(MOST_EDGES * bins.keys());
    (counts * size_of::<u32>()) as u64
}

impl Histogram {
    /// No key yet, of a group of `elements` elements; `None` if their number is not known.
    pub fn new(streams: Vec<Stream>, elements: Option<u64>) -> Self {
        let bins = bins_for(streams.len());
        let is_short = elements.is_some_and(|elements| elements <= CHUNK as u64);
        let totals = || match is_short {
            true => Totals::Listed(Vec::new()),
            false => Totals::Counted(vec![0; bins.count()]),
        };
        Self {
            bins,
            totals: streams.iter().map(|_| Mutex::new(totals())).collect(),
            streams,
        }
    }

    /// Adds the keys of a stretch of stream `stream`, which come in `parts`; `counts` are zeros
    /// before and after.
    pub fn add(&self, stream: usize, counts: &mut Vec<u32>, parts: Parts<'_>) {
        let is_listed = matches!(*self.lock(stream), Totals::Listed(_));
        if is_listed {
            parts(&mut |keys| {
                if let Totals::Listed(listed) = &mut *self.lock(stream) {
                    listed.extend_from_slice(keys);
                }
            });
            return;
        }
        counts.resize(self.bins.count().max(counts.len()), 0);
        let counts = &mut counts[..self.bins.count()];
        let mut touched = counts.len()..0;
        parts(&mut |keys| {
            let next = self.bins.add(keys, counts);
            if !next.is_empty() {
                touched = touched.start.min(next.start)..touched.end.max(next.end);
            }
        });
        if let Totals::Counted(totals) = &mut *self.lock(stream)
            && !touched.is_empty()
        {
            drain(&mut counts[touched.clone()], &mut totals[touched]);
        }
    }

    fn lock(&self, stream: usize) -> std::sync::MutexGuard<'_, Totals> {
        self.totals[stream]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the elements of `stream` whose key is zero.
    pub fn zeros(&self, stream: usize) -> u64 {
        match &*self.lock(stream) {
            Totals::Listed(keys) => keys.iter().filter(|key| **key == 0).count() as u64,
            Totals::Counted(counts) => counts[0],
        }
    }

    /// Finds the `rank`-th largest key of `stream`, counted from 1 and at most the number of its
    /// elements.
    pub fn find(&self, stream: usize, rank: u64) -> Place {
        match &mut *self.lock(stream) {
            Totals::Listed(keys) => Place::Edge(find_listed(keys, rank)),
            Totals::Counted(counts) => find_counted(self.bins, counts, rank),
        }
    }
}

/// Adds the counts to the totals and clears them.
fn drain(counts: &mut [u32], totals: &mut [u64]) {
    for (count, total) in counts.iter_mut().zip(totals) {
        *total += u64::from(*count);
        *count = 0;
    }
}

fn find_listed(keys: &mut [u32], rank: u64) -> Edge {
    let place = usize::try_from(rank - 1).expect("a short group");
    let (_, key, _) = keys.select_nth_unstable_by(place, |one, other| other.cmp(one));
    let key = *key;
    let above = keys.iter().filter(|other| **other > key).count() as u64;
    let of = keys.iter().filter(|other| **other == key).count() as u64;
    Edge {
        key,
        of,
        kept: rank - above,
    }
}

/// Walks from the largest bin down until `rank` keys were met.
fn find_counted(bins: Bins, counts: &[u64], rank: u64) -> Place {
    let mut above = 0;
    for (bin, count) in counts.iter().enumerate().rev() {
        let bin = u32::try_from(bin).expect("bins are numbered by keys");
        if above + count >= rank {
            let rank = rank - above;
            return match bins.only_key(bin) {
                Some(key) => Place::Edge(Edge {
                    key,
                    of: *count,
                    kept: rank,
                }),
                None => Place::In { bin, rank },
            };
        }
        above += count;
    }
    unreachable!("a rank is at most the number of elements")
}

impl Refinement {
    /// No key yet of these bins.
    pub fn new(bins: Bins, streams: Vec<(Stream, Vec<u32>)>) -> Self {
        let totals = streams
            .iter()
            .map(|(_, wanted)| {
                let fresh = || Mutex::new(vec![0; bins.keys()]);
                wanted.iter().map(|_| fresh()).collect()
            })
            .collect();
        Self {
            bins,
            streams,
            totals,
        }
    }

    /// Adds the keys of a stretch of stream `stream`, as [`Histogram::add`] does.
    pub fn add(&self, stream: usize, counts: &mut Vec<u32>, parts: Parts<'_>) {
        let (keys_of_bin, (_, wanted)) = (self.bins.keys(), &self.streams[stream]);
        counts.resize((wanted.len() * keys_of_bin).max(counts.len()), 0);
        let counts = &mut counts[..wanted.len() * keys_of_bin];
        parts(&mut |keys| {
            for (bin, counts) in wanted.iter().zip(counts.chunks_exact_mut(keys_of_bin)) {
                self.bins.add_in(*bin, keys, counts);
            }
        });
        let totals = &self.totals[stream];
        for (total, counts) in totals.iter().zip(counts.chunks_exact_mut(keys_of_bin)) {
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            drain(counts, &mut total);
        }
    }

    /// Finds the `rank`-th largest key of `bin` in `stream`.
    pub fn find(&self, stream: usize, bin: u32, rank: u64) -> Edge {
        let (_, wanted) = &self.streams[stream];
        let at = wanted
            .iter()
            .position(|other| *other == bin)
            .expect("the bin was asked for");
        let totals = self.totals[stream][at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut above = 0;
        for (low, count) in totals.iter().enumerate().rev() {
            let low = u32::try_from(low).expect("a part of a key");
            if above + count >= rank {
                return Edge {
                    key: self.bins.key(bin, low),
                    of: *count,
                    kept: rank - above,
                };
            }
            above += count;
        }
        unreachable!("the second sweep meets the keys of the first")
    }
}
