//! The few smallest entries of each row and of each column, kept while rows stream by.

/// The `keep` smallest entries seen so far of each of `lists` lists, smallest first; of equal ones
/// those seen first.
#[derive(Debug)]
pub(super) struct Nearest {
    keep: usize,
    costs: Vec<f32>,
    places: Vec<u32>,
}

const CHUNK: usize = 16;

impl Nearest {
    pub(super) fn new(lists: usize, keep: usize) -> Self {
        Self {
            keep,
            costs: vec![f32::INFINITY; lists * keep],
            places: vec![u32::MAX; lists * keep],
        }
    }

    /// Returns the bytes of one list.
    pub(super) fn bytes(keep: usize) -> usize {
        keep * (size_of::<f32>() + size_of::<u32>())
    }

    /// Returns the kept entries of one list, as cost and place.
    pub(super) fn list(&self, list: usize) -> impl Iterator<Item = (f32, u32)> {
        let range = list * self.keep..(list + 1) * self.keep;
        let costs = self.costs[range.clone()].iter().copied();
        costs
            .zip(self.places[range].iter().copied())
            .filter(|(_, place)| *place != u32::MAX)
    }

    /// Returns a lower bound on the entries of the list that were left out.
    pub(super) fn bound(&self, list: usize) -> f32 {
        self.costs[(list + 1) * self.keep - 1]
    }

    fn insert(&mut self, list: usize, cost: f32, place: u32) {
        let range = list * self.keep..(list + 1) * self.keep;
        let (costs, places) = (&mut self.costs[range.clone()], &mut self.places[range]);
        let mut at = costs.len() - 1;
        while at > 0 && cost < costs[at - 1] {
            (costs[at], places[at]) = (costs[at - 1], places[at - 1]);
            at -= 1;
        }
        (costs[at], places[at]) = (cost, place);
    }

    /// Offers all `entries` to one list; the place of each is its index.
    pub(super) fn offer_row(&mut self, list: usize, entries: &[f32]) {
        let mut bound = self.bound(list);
        for (base, chunk) in (0..).step_by(CHUNK).zip(entries.chunks(CHUNK)) {
            if chunk
                .iter()
                .fold(false, |any, entry| any | (*entry < bound))
            {
                for (place, entry) in (base..).zip(chunk) {
                    if *entry < bound {
                        self.insert(list, *entry, place);
                        bound = self.bound(list);
                    }
                }
            }
        }
    }
}

/// The smallest entries of every column.
#[derive(Debug)]
pub(super) struct NearestRows {
    lists: Nearest,
    /// [`Nearest::bound`] of every list side by side.
    bounds: Vec<f32>,
}

impl NearestRows {
    pub(super) fn new(lists: usize, keep: usize) -> Self {
        Self {
            lists: Nearest::new(lists, keep),
            bounds: vec![f32::INFINITY; lists],
        }
    }

    /// Returns the kept entries of one column, as cost and row.
    pub(super) fn list(&self, column: usize) -> impl Iterator<Item = (f32, u32)> {
        self.lists.list(column)
    }

    /// Offers each entry of a row to the list of its column.
    pub(super) fn offer(&mut self, row: u32, entries: &[f32]) {
        for (at, entries) in entries.chunks(CHUNK).enumerate() {
            let bounds = &mut self.bounds[at * CHUNK..][..entries.len()];
            if entries
                .iter()
                .zip(&*bounds)
                .fold(false, |any, (entry, bound)| any | (entry < bound))
            {
                for (k, (entry, bound)) in entries.iter().zip(bounds).enumerate() {
                    if entry < bound {
                        self.lists.insert(at * CHUNK + k, *entry, row);
                        *bound = self.lists.bound(at * CHUNK + k);
                    }
                }
            }
        }
    }
}

/// Fills `least` with the `count` smallest finite values and their places; returns the next
/// smallest.
pub(super) fn few_smallest(values: &[f64], count: usize, least: &mut Vec<(f64, u32)>) -> f64 {
    least.clear();
    let mut bound = f64::INFINITY;
    for (place, value) in (0..).zip(values) {
        if *value < bound {
            let at = least.partition_point(|(other, _)| other <= value);
            least.insert(at, (*value, place));
            if least.len() > count + 1 {
                least.pop();
            }
            if least.len() == count + 1 {
                bound = least[count].0;
            }
        }
    }
    if least.len() > count {
        least.pop().map_or(f64::INFINITY, |(value, _)| value)
    } else {
        f64::INFINITY
    }
}
