//! Gathers cells from a row in memory, and flips signs.

use std::ops::Range;

use crate::symmetry::AxisMap;

/// The places that a gather reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The place of the unit itself.
    Own,
    /// The place of its partner, where the pair is turned.
    Partner,
}

/// The layout of a row whose cells are gathered from another one.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a> {
    pub map: &'a AxisMap,
    pub side: Side,
    /// The elements of a cell.
    pub run: usize,
    /// The bytes of an element.
    pub unit: usize,
}

impl Cells<'_> {
    /// Fills `into` with elements `range` of the row that is gathered from `row`.
    pub(super) fn gather(self, row: &[u8], range: &Range<usize>, into: &mut [u8]) {
        let Self {
            map,
            side,
            run,
            unit,
        } = self;
        match (side, run, unit) {
            (Side::Own, 1, 1) => single::<1>(row, &map.source[range.clone()], into),
            (Side::Own, 1, 2) => single::<2>(row, &map.source[range.clone()], into),
            (Side::Own, 1, 4) => single::<4>(row, &map.source[range.clone()], into),
            (Side::Own, 1, 8) => single::<8>(row, &map.source[range.clone()], into),
            _ => self.runs(row, range, into),
        }
        if !map.negative.is_empty() {
            let elements = into.chunks_exact_mut(unit).zip(range.clone());
            elements
                .filter(|(_, at)| map.negative[at / run])
                .for_each(|(element, _)| flip(element));
        }
    }

    /// Copies cell by cell; the first and the last may be cut by `range`.
    fn runs(self, row: &[u8], range: &Range<usize>, into: &mut [u8]) {
        let Self {
            map,
            side,
            run,
            unit,
        } = self;
        let mut rest = into;
        let mut at = range.start;
        while at < range.end {
            let (cell, inside) = (at / run, at % run);
            let len = (run - inside).min(range.end - at);
            let source = match (side, map.turn(cell)) {
                (Side::Partner, Some(turn)) => turn.partner,
                _ => map.source[cell],
            };
            let from = (source as usize * run + inside) * unit;
            let (piece, after) = rest.split_at_mut(len * unit);
            piece.copy_from_slice(&row[from..from + len * unit]);
            rest = after;
            at += len;
        }
    }
}

fn single<const UNIT: usize>(row: &[u8], sources: &[u32], into: &mut [u8]) {
    let row = row.as_chunks::<UNIT>().0;
    for (element, &source) in into.as_chunks_mut::<UNIT>().0.iter_mut().zip(sources) {
        *element = row[source as usize];
    }
}

/// Flips the sign of every element of `unit` bytes: in all formats it is the top bit of the last
/// byte.
pub(super) fn flip_all(elements: &mut [u8], unit: usize) {
    elements.chunks_exact_mut(unit).for_each(flip);
}

fn flip(element: &mut [u8]) {
    if let Some(last) = element.last_mut() {
        *last ^= 0x80;
    }
}
