//! Strided views: computes their reach, and reads their elements in order from a file, in bounded
//! memory.
//!
//! The output has the elements in row-major order of the shape, but the file has them in the order
//! of the strides. The output is cut into blocks of at most [`BLOCK_BYTES`]; each block is filled
//! by reads in file order, each at most that long too, so that a transposed matrix of any size is
//! read in long runs and not element by element.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The most bytes of output held at a time, and the most bytes of input.
pub(super) const BLOCK_BYTES: usize = 8 << 20;
/// The most bytes read per byte needed; that is still cheaper than one read per element.
const DENSE: u64 = 64;
/// The largest dimension: no real tensor comes near it, and products of two stay in range.
const MAX_SIZE: u64 = 1 << 48;

/// Counts the elements of a shape; `None` on overflow.
pub(super) fn elements(shape: &[u64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .try_fold(1_u64, |count, size| count.checked_mul(*size))
}

/// Returns the span of a view, from its first to behind its last element, in elements; `None` if
/// the number is absurd.
pub(super) fn reach(shape: &[u64], strides: &[u64]) -> Option<u64> {
    if shape.iter().any(|size| *size > MAX_SIZE) {
        return None;
    }
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .zip(strides)
        .try_fold(1_u64, |reach, (size, stride)| {
            reach.checked_add((size - 1).checked_mul(*stride)?)
        })
}

/// Tells if the elements are in order without gaps; ignores the strides of dimensions of size one.
pub(super) fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut wanted = 1;
    shape
        .iter()
        .zip(strides)
        .rev()
        .filter(|(size, _)| **size != 1)
        .all(|(size, stride)| {
            let matches = *stride == wanted;
            wanted = wanted.saturating_mul(*size);
            matches
        })
}

/// A strided view of elements in a file.
pub(super) struct Strided<'a> {
    pub(super) file: &'a File,
    /// The offset of the view's first element in the file, in bytes.
    pub(super) start: u64,
    /// The size of an element, in bytes: 1, 2, 4 or 8.
    pub(super) width: u64,
    pub(super) shape: &'a [u64],
    pub(super) strides: &'a [u64],
}

/// One dimension of a block: the number of steps, and their stride in the input and in the output.
#[derive(Debug, Clone, Copy)]
struct Axis {
    size: u64,
    from: u64,
    to: u64,
}

/// A callback that takes a gathered block.
pub(super) type Sink<'s, E> = &'s mut dyn FnMut(&[u8]) -> Result<(), E>;

impl Strided<'_> {
    /// Passes the elements in row-major order to `sink`, block by block.
    pub(super) fn gather<E: From<io::Error>>(&self, sink: Sink<'_, E>) -> Result<(), E> {
        if self.shape.contains(&0) {
            return Ok(());
        }
        let mut filler = Filler {
            view: self,
            block: Vec::new(),
            span: Vec::new(),
        };
        filler.blocks(&merged(self.shape, self.strides), 0, sink)
    }
}

/// Drops dimensions of size one and joins neighbours where one continues the other.
fn merged(shape: &[u64], strides: &[u64]) -> Vec<(u64, u64)> {
    let mut dims: Vec<(u64, u64)> = Vec::new();
    for (&size, &stride) in shape.iter().zip(strides).filter(|(size, _)| **size != 1) {
        match dims.last_mut() {
            Some(outer) if stride.checked_mul(size) == Some(outer.1) => {
                *outer = (outer.0 * size, stride)
            }
            _ => dims.push((size, stride)),
        }
    }
    dims
}

struct Filler<'a> {
    view: &'a Strided<'a>,
    block: Vec<u8>,
    span: Vec<u8>,
}

impl Filler<'_> {
    fn most(&self) -> u64 {
        BLOCK_BYTES as u64 / self.view.width
    }

    /// Cuts the outermost dimensions until the rest fits a block.
    fn blocks<E: From<io::Error>>(
        &mut self,
        dims: &[(u64, u64)],
        from: u64,
        sink: Sink<'_, E>,
    ) -> Result<(), E> {
        let Some((&(size, stride), inner)) = dims.split_first() else {
            return self.block(&[], from, sink);
        };
        let inner_count: u64 = inner.iter().map(|(size, _)| size).product();
        let step = (self.most() / inner_count).min(size);
        if step == 0 {
            return (0..size).try_for_each(|index| self.blocks(inner, from + index * stride, sink));
        }
        let mut index = 0;
        while index < size {
            let rows = step.min(size - index);
            let block: Vec<_> = std::iter::once((rows, stride))
                .chain(inner.iter().copied())
                .collect();
            self.block(&block, from + index * stride, sink)?;
            index += rows;
        }
        Ok(())
    }

    fn block<E: From<io::Error>>(
        &mut self,
        dims: &[(u64, u64)],
        from: u64,
        sink: Sink<'_, E>,
    ) -> Result<(), E> {
        let mut axes = Vec::with_capacity(dims.len());
        let mut count = 1;
        for &(size, stride) in dims.iter().rev() {
            axes.push(Axis {
                size,
                from: stride,
                to: count,
            });
            count *= size;
        }
        // In file order: the longest strides outside.
        axes.sort_by_key(|axis| std::cmp::Reverse(axis.from));
        self.block.clear();
        self.block.resize(bounded(count * self.view.width), 0);
        self.fill(&axes, from, 0)?;
        sink(&self.block)
    }

    /// Reads the span of `axes` at once if it is dense enough, else cuts the outermost axis.
    fn fill(&mut self, axes: &[Axis], from: u64, to: u64) -> io::Result<()> {
        if span(axes) <= self.most() && is_dense(axes) {
            return self.load(axes, from, to);
        }
        let (outer, inner) = axes
            .split_first()
            .expect("a span without axes is one element");
        // As many steps of the outer axis as one read may span, if that is dense enough.
        let steps = self.most().saturating_sub(span(inner)) / outer.from.max(1) + 1;
        let several = [
            &[Axis {
                size: steps,
                ..*outer
            }],
            inner,
        ]
        .concat();
        let steps = if span(&several) <= self.most() && is_dense(&several) {
            steps
        } else {
            1
        };
        let mut index = 0;
        while index < outer.size {
            let size = steps.min(outer.size - index);
            let (from, to) = (from + index * outer.from, to + index * outer.to);
            match size {
                1 => self.fill(inner, from, to)?,
                _ => self.load(&[&[Axis { size, ..*outer }], inner].concat(), from, to)?,
            }
            index += size;
        }
        Ok(())
    }

    /// Reads one span, and puts its elements in their places.
    fn load(&mut self, axes: &[Axis], from: u64, to: u64) -> io::Result<()> {
        let width = self.view.width;
        self.span.resize(bounded(span(axes) * width), 0);
        self.view
            .file
            .read_exact_at(&mut self.span, self.view.start + from * width)?;
        let target = &mut self.block[bounded(to * width)..];
        match width {
            1 => scatter::<1>(axes, &self.span, target),
            2 => scatter::<2>(axes, &self.span, target),
            4 => scatter::<4>(axes, &self.span, target),
            _ => scatter::<8>(axes, &self.span, target),
        }
        Ok(())
    }
}

fn span(axes: &[Axis]) -> u64 {
    1 + axes
        .iter()
        .map(|axis| (axis.size - 1) * axis.from)
        .sum::<u64>()
}

fn is_dense(axes: &[Axis]) -> bool {
    let count: u64 = axes.iter().map(|axis| axis.size).product();
    span(axes) <= count.saturating_mul(DENSE)
}

/// Converts a length; blocks and spans are at most [`BLOCK_BYTES`] long.
fn bounded(bytes: u64) -> usize {
    usize::try_from(bytes).expect("blocks are bounded")
}

fn scatter<const WIDTH: usize>(axes: &[Axis], from: &[u8], to: &mut [u8]) {
    let Some((outer, inner)) = axes.split_first() else {
        to[..WIDTH].copy_from_slice(&from[..WIDTH]);
        return;
    };
    let (size, step_from, step_to) = (
        bounded(outer.size),
        bounded(outer.from) * WIDTH,
        bounded(outer.to) * WIDTH,
    );
    if inner.is_empty() && step_from == WIDTH && step_to == WIDTH {
        to[..size * WIDTH].copy_from_slice(&from[..size * WIDTH]);
        return;
    }
    for index in 0..size {
        scatter::<WIDTH>(
            inner,
            &from[index * step_from..],
            &mut to[index * step_to..],
        );
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The element at each index, one by one: the reference for a gather.
    fn naive(data: &[u8], view: &Strided<'_>) -> Vec<u8> {
        let count = elements(view.shape).expect("small");
        let width = usize::try_from(view.width).expect("small");
        let mut out = Vec::new();
        for mut index in 0..count {
            let mut at = 0;
            for (size, stride) in view.shape.iter().zip(view.strides).rev() {
                at += index % size * stride;
                index /= size;
            }
            let start = usize::try_from(view.start + at * view.width).expect("small");
            out.extend_from_slice(&data[start..start + width]);
        }
        out
    }

    /// Elements of prime period, so that swapped ones differ.
    fn painted(bytes: usize) -> (File, Vec<u8>) {
        let data: Vec<u8> = (0..251_u8).cycle().take(bytes).collect();
        let mut file = tempfile::tempfile().expect("a temporary file can be made");
        file.write_all(&data)
            .expect("a temporary file can be written");
        (file, data)
    }

    fn assert_gathers(start: u64, width: u64, shape: &[u64], strides: &[u64]) {
        let reach = reach(shape, strides).expect("small");
        let (file, data) = painted(usize::try_from(start + reach * width).expect("small"));
        let view = Strided {
            file: &file,
            start,
            width,
            shape,
            strides,
        };
        let mut out = Vec::new();
        let result: io::Result<()> = view.gather(&mut |block| {
            assert!(block.len() <= BLOCK_BYTES);
            out.extend_from_slice(block);
            Ok(())
        });
        result.expect("the whole view lies in the file");
        assert!(
            out == naive(&data, &view),
            "{shape:?} {strides:?} width {width}"
        );
    }

    #[test]
    fn views_of_every_kind_are_gathered_as_element_by_element() {
        for width in [1, 2, 4, 8] {
            for (shape, strides) in [
                (&[][..], &[][..]),
                (&[0], &[1]),
                (&[1], &[77]),
                (&[7], &[1]),
                (&[7], &[3]),
                (&[5, 9], &[1, 5]),
                (&[3, 4, 5], &[1, 15, 3]),
                (&[4, 3, 3, 2], &[1, 10, 30, 90]),
                (&[6, 5], &[0, 1]),
                (&[5, 6], &[1, 0]),
                (&[4, 4], &[1, 1]),
                (&[3, 0, 2], &[9, 9, 9]),
                (&[2, 3], &[100_000, 1]),
                (&[3, 2], &[1, 70_001]),
            ] {
                assert_gathers(13, width, shape, strides);
            }
        }
    }

    #[test]
    fn views_bigger_than_a_block_are_cut_at_its_boundaries() {
        let most = BLOCK_BYTES as u64 / 8;
        for size in [most - 1, most, most + 1] {
            assert_gathers(0, 8, &[size], &[1]);
            assert_gathers(0, 8, &[2, size], &[size, 1]);
            assert_gathers(0, 8, &[size, 2], &[1, size]);
        }
        assert_gathers(3, 4, &[3001, 1009], &[1, 3001]);
        assert_gathers(0, 2, &[20, 17], &[1, 600_000]);
        assert_gathers(0, 1, &[9000], &[1000]);
        assert_gathers(0, 1, &[90_000], &[90]);
    }

    #[test]
    fn contiguity_ignores_dimensions_of_size_one() {
        assert!(is_contiguous(&[], &[]));
        assert!(is_contiguous(&[2, 1, 3], &[3, 99, 1]));
        assert!(!is_contiguous(&[2, 3], &[1, 2]));
        assert!(!is_contiguous(&[2, 3], &[4, 1]));
        assert!(!is_contiguous(&[3], &[0]));
    }

    #[test]
    fn shapes_beyond_any_storage_have_no_reach() {
        assert_eq!(reach(&[1 << 40, 1 << 40], &[1 << 40, 1]), None);
        assert_eq!(reach(&[2, 2], &[u64::MAX, 1]), None);
        assert_eq!(reach(&[u64::MAX, 0], &[1, 1]), None);
        assert_eq!(elements(&[1 << 40, 1 << 40, 0]), Some(0));
        assert_eq!(elements(&[1 << 40, 1 << 40]), None);
    }
}
