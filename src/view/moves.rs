//! Reads ranges of a tensor whose units are reordered, flipped and turned in pairs.

use std::ops::Range;

use super::cells::{self, Cells, Side};
use super::{Below, index};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{Elements, Scratch};
use crate::symmetry::AxisMap;

/// The largest read of consecutive rows.
pub(super) const BATCH_BYTES: u64 = 1 << 20;

/// The computed source of each element, with the buffers for reading.
pub(super) struct Moves {
    /// The length and map of each axis that makes up the rows.
    outer: Vec<(u64, Option<AxisMap>)>,
    /// The map of places inside a row.
    columns: Option<AxisMap>,
    /// The elements of a row.
    row: u64,
    /// The elements of a cell of a row.
    run: u64,
    stored: Dtype,
    turned: bool,
    own: Batch,
    partner: Batch,
    rows: [Vec<u8>; 2],
    wide: Vec<u8>,
    scratch: Scratch,
}

/// Consecutive rows of the original.
#[derive(Default)]
struct Batch {
    rows: Range<u64>,
    bytes: Vec<u8>,
}

/// The source of a row.
#[derive(Clone, Copy, PartialEq)]
struct Origin {
    row: u64,
    negative: bool,
    /// The partner's row, and the factors of both.
    turn: Option<(u64, f64, f64)>,
}

impl Origin {
    /// The origin of the row `count` rows further down, where rows are copied.
    fn following(self, count: u64) -> Self {
        Self {
            row: self.row + count,
            ..self
        }
    }
}

/// A piece of a row, and the place in the original where it comes from.
#[derive(Clone)]
struct Piece {
    row: u64,
    /// The row of the original.
    source: u64,
    side: Side,
    /// The elements, counted from the start of the row.
    range: Range<u64>,
}

impl Moves {
    pub(super) fn new(
        outer: Vec<(u64, Option<AxisMap>)>,
        columns: Option<AxisMap>,
        row: u64,
        run: u64,
        stored: Dtype,
        turned: bool,
    ) -> Self {
        Self {
            outer,
            columns,
            row,
            run,
            stored,
            turned,
            own: Batch::default(),
            partner: Batch::default(),
            rows: Default::default(),
            wide: Default::default(),
            scratch: Scratch::default(),
        }
    }

    /// Returns the type of the elements: f64 if pairs are turned, else as stored.
    pub fn dtype(&self) -> Dtype {
        if self.turned { Dtype::F64 } else { self.stored }
    }

    /// Fills `into` with the elements of `range`, of [`Moves::dtype`].
    ///
    /// # Errors
    ///
    /// When the original cannot be read.
    pub fn read(&mut self, from: Below<'_>, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        let unit = self.dtype().bytes();
        let mut rest = into;
        let mut at = range.start;
        while at < range.end {
            let (row, inside) = (at / self.row, at % self.row);
            let end = self.stretch(row, at, range.end);
            let (piece, after) = rest.split_at_mut(index(end - at) * unit);
            self.piece(from, row, inside..inside + (end - at), piece)?;
            (rest, at) = (after, end);
        }
        Ok(())
    }

    /// Announces that `range` will be read soon.
    pub fn prefetch(&self, from: Below<'_>, range: Range<u64>) {
        let mut run = 0..0;
        for row in range.start / self.row.max(1)..range.end.div_ceil(self.row.max(1)) {
            let origin = self.origin(row);
            for source in
                std::iter::once(origin.row).chain(origin.turn.map(|(partner, _, _)| partner))
            {
                let elements = source * self.row..(source + 1) * self.row;
                if elements.start == run.end {
                    run.end = elements.end;
                } else {
                    from.first().prefetch(std::mem::replace(&mut run, elements));
                }
            }
        }
        from.first().prefetch(run);
    }

    /// Finds the end of the piece that begins at `at` in `row`: the end of the row or, where rows
    /// are copied, of the last row that also follows its predecessor in the original.
    fn stretch(&self, row: u64, at: u64, end: u64) -> u64 {
        let mut last = row;
        if self.columns.is_none() && !self.turned {
            let first = self.origin(row);
            while (last + 1) * self.row < end
                && self.origin(last + 1) == first.following(last + 1 - row)
            {
                last += 1;
            }
        }
        debug_assert!(at < end);
        end.min((last + 1) * self.row)
    }

    /// Computes the origin of a row: each axis contributes its digit, its sign and perhaps a turn.
    fn origin(&self, row: u64) -> Origin {
        let mut origin = Origin {
            row: 0,
            negative: false,
            turn: None,
        };
        let (mut rest, mut stride) = (row, 1);
        let mut partner = None;
        for (len, map) in self.outer.iter().rev() {
            let place = rest % len;
            rest /= len;
            let at = index(place);
            let source = map.as_ref().map_or(place, |map| u64::from(map.source[at]));
            let turn = map.as_ref().and_then(|map| map.turn(at));
            partner = match (turn, partner) {
                (Some(turn), _) => Some((
                    origin.row + u64::from(turn.partner) * stride,
                    turn.cos,
                    turn.sin,
                )),
                (None, Some((other, cos, sin))) => Some((other + source * stride, cos, sin)),
                (None, None) => None,
            };
            origin.row += source * stride;
            origin.negative ^= map.as_ref().is_some_and(|map| map.is_negative(at));
            stride *= len;
        }
        origin.turn = partner;
        origin
    }

    /// Fills `into` with the elements `range`, counted from the start of `row`.
    fn piece(
        &mut self,
        from: Below<'_>,
        row: u64,
        range: Range<u64>,
        into: &mut [u8],
    ) -> Result<()> {
        let origin = self.origin(row);
        if self.turned {
            self.turned_piece(from, row, origin, &range, into)?;
            if origin.negative {
                cells::flip_all(into, Dtype::F64.bytes());
            }
            return Ok(());
        }
        let mut batch = std::mem::take(&mut self.own);
        let piece = Piece {
            row,
            source: origin.row,
            side: Side::Own,
            range,
        };
        let done = self.stored_piece(from, piece, &mut batch, into);
        self.own = batch;
        done?;
        if origin.negative {
            cells::flip_all(into, self.stored.bytes());
        }
        Ok(())
    }

    /// Reads a piece of a row as stored, with its columns gathered. Rows that follow each other are
    /// read together into `batch`.
    fn stored_piece(
        &self,
        from: Below<'_>,
        piece: Piece,
        batch: &mut Batch,
        into: &mut [u8],
    ) -> Result<()> {
        let Piece { source, range, .. } = &piece;
        let Some(map) = &self.columns else {
            let start = source * self.row;
            return from
                .first()
                .read(start + range.start..start + range.end, into);
        };
        if !batch.rows.contains(source) {
            self.fill(from, &piece, batch)?;
        }
        let unit = self.stored.bytes();
        let bytes = index(self.row) * unit;
        let row = &batch.bytes[index(source - batch.rows.start) * bytes..][..bytes];
        let cells = Cells {
            map,
            side: piece.side,
            run: index(self.run),
            unit,
        };
        cells.gather(row, &(index(range.start)..index(range.end)), into);
        Ok(())
    }

    /// Reads the row of a piece into `batch`, with those rows after it that follow each other both
    /// here and in the original.
    fn fill(&self, from: Below<'_>, piece: &Piece, batch: &mut Batch) -> Result<()> {
        let Piece { row, source, .. } = *piece;
        let bytes = index(self.row) * self.stored.bytes();
        let most = (BATCH_BYTES / (bytes as u64).max(1)).max(1);
        let all = self.outer.iter().map(|(len, _)| len).product::<u64>();
        let ahead = (1..most)
            .take_while(|n| row + n < all && self.origin(row + n).row == source + n)
            .count();
        batch.rows = source..source + 1 + ahead as u64;
        batch.bytes.resize((1 + ahead) * bytes, 0);
        let range = batch.rows.start * self.row..batch.rows.end * self.row;
        let read = from.first().read(range, &mut batch.bytes);
        if read.is_err() {
            batch.rows = 0..0;
        }
        read
    }

    /// Reads a piece of a row as f64, with its pairs turned.
    fn turned_piece(
        &mut self,
        from: Below<'_>,
        row: u64,
        origin: Origin,
        range: &Range<u64>,
        into: &mut [u8],
    ) -> Result<()> {
        let [mut one, mut other] = std::mem::take(&mut self.rows);
        let piece = Piece {
            row,
            source: origin.row,
            side: Side::Own,
            range: range.clone(),
        };
        let mut batch = std::mem::take(&mut self.own);
        let done = self.resized_piece(from, piece.clone(), &mut batch, &mut one);
        self.own = batch;
        done?;
        let turns_columns = self
            .columns
            .as_ref()
            .is_some_and(|map| !map.turns.is_empty());
        let second = match origin.turn {
            Some((partner, _, _)) => Some((partner, Side::Own)),
            None => turns_columns.then_some((origin.row, Side::Partner)),
        };
        if let Some((source, side)) = second {
            // The partner's neighbours differ from the row's, so none are read ahead.
            let piece = Piece {
                row: u64::MAX - 1,
                source,
                side,
                ..piece
            };
            let mut batch = std::mem::take(&mut self.partner);
            let done = self.resized_piece(from, piece, &mut batch, &mut other);
            self.partner = batch;
            done?;
        }
        self.turn(from, origin, [&one, &other], range, into);
        self.rows = [one, other];
        Ok(())
    }

    /// Reads a piece as [`Moves::stored_piece`] does, into a buffer that is made to fit.
    fn resized_piece(
        &self,
        from: Below<'_>,
        piece: Piece,
        batch: &mut Batch,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        into.resize(
            index(piece.range.end - piece.range.start) * self.stored.bytes(),
            0,
        );
        self.stored_piece(from, piece, batch, into)
    }

    /// Widens a piece to f64 and turns it with its partner: whole rows, or cells of columns.
    fn turn(
        &mut self,
        from: Below<'_>,
        origin: Origin,
        rows: [&[u8]; 2],
        range: &Range<u64>,
        into: &mut [u8],
    ) {
        let dtype = self.stored;
        let [own, partner] = rows.map(|bytes| Elements { dtype, bytes });
        if let Some((_, cos, sin)) = origin.turn {
            let terms = [(cos, own), (sin, partner)];
            from.kernels
                .combine(&terms, 1.0, Dtype::F64, &mut self.scratch, into);
            return;
        }
        from.kernels.convert(own, Dtype::F64, into);
        let columns = self.columns.as_ref();
        if columns.is_some_and(|map| !map.turns.is_empty()) {
            self.wide.resize(into.len(), 0);
            from.kernels.convert(partner, Dtype::F64, &mut self.wide);
            self.turn_cells(range, into);
        }
    }

    /// Turns the cells of a row; their partners' values are in `wide`.
    fn turn_cells(&self, range: &Range<u64>, into: &mut [u8]) {
        let Some(map) = &self.columns else { return };
        let values = into
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(self.wide.as_chunks::<8>().0);
        for ((value, partner), at) in values.zip(range.clone()) {
            if let Some(turn) = map.turn(index(at / self.run)) {
                let turned =
                    turn.cos * f64::from_le_bytes(*value) + turn.sin * f64::from_le_bytes(*partner);
                *value = turned.to_le_bytes();
            }
        }
    }
}
