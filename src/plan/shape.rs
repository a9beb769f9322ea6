//! The shape of an output tensor when those of the inputs differ, and where an input's elements then go.

use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::recipe::Mismatch;

use super::assign::Assignment;
use super::coverage::named;
use super::job::Job;
use super::tensor::TensorPlan;

/// How many tensors an error lists before it only counts.
const LISTED: usize = 5;

/// The shape that `shapes` are brought to under `policy`; `None` when they cannot be.
///
/// Padding takes the larger of each of the last two dimensions and needs the others to be equal; cropping takes the
/// smallest first dimension and needs all others to be equal.
pub fn common(shapes: &[&[u64]], policy: Mismatch) -> Option<Vec<u64>> {
    let (first, rest) = shapes.split_first()?;
    if rest.iter().all(|shape| shape == first) {
        return Some(first.to_vec());
    }
    if rest.iter().any(|shape| shape.len() != first.len()) {
        return None;
    }
    let leading = match policy {
        Mismatch::Pad => 0..first.len().saturating_sub(2),
        Mismatch::Crop => 1..first.len(),
        Mismatch::Error | Mismatch::Skip => return None,
    };
    if rest.iter().any(|shape| shape[leading.clone()] != first[leading.clone()]) {
        return None;
    }
    let extreme = |axis: usize| {
        let sizes = shapes.iter().map(|shape| shape[axis]);
        if policy == Mismatch::Pad { sizes.max() } else { sizes.min() }
    };
    (0..first.len()).map(extreme).collect()
}

/// Where the elements of a smaller tensor lie in a bigger one of the same rank: each row at the start of a row, the
/// rows at the start of each matrix of the last two dimensions. All other elements are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    rows: u64,
    columns: u64,
    wide_rows: u64,
    wide_columns: u64,
}

impl Placement {
    /// The placement of a tensor of shape `small` in one of shape `wide`; `None` when nothing has to be moved.
    pub fn new(small: &[u64], wide: &[u64]) -> Option<Self> {
        let last_two = |shape: &[u64]| match shape {
            [] => (1, 1),
            [columns] => (1, *columns),
            [.., rows, columns] => (*rows, *columns),
        };
        let ((rows, columns), (wide_rows, wide_columns)) = (last_two(small), last_two(wide));
        (small != wide).then_some(Self { rows, columns, wide_rows, wide_columns })
    }

    /// Elements of the small tensor that lie before element `index` of the wide one.
    fn before(&self, index: u64) -> u64 {
        let matrix = self.wide_rows * self.wide_columns;
        if matrix == 0 {
            return 0;
        }
        let (row, column) = (index % matrix / self.wide_columns, index % self.wide_columns);
        let in_row = if row < self.rows { column.min(self.columns) } else { 0 };
        (index / matrix * self.rows + row.min(self.rows)) * self.columns + in_row
    }

    /// The elements of the small tensor that lie among the `len` elements from `start` on of the wide one.
    pub fn range(&self, start: u64, len: u64) -> Range<u64> {
        self.before(start)..self.before(start + len)
    }

    /// Puts `small`, the bytes of [`Placement::range`], into `wide`, zeros that stand for the elements from `start` on.
    pub fn place(&self, start: u64, unit: usize, small: &[u8], wide: &mut [u8]) {
        let (mut at, mut taken) = (0, 0);
        while taken < small.len() && at < wide.len() {
            let index = start + (at / unit) as u64;
            let row_end = index - index % self.wide_columns + self.wide_columns;
            let next = bytes(row_end - start, unit).min(wide.len());
            let run = bytes(self.before(row_end) - self.before(index), unit).min(next - at).min(small.len() - taken);
            wide[at..at + run].copy_from_slice(&small[taken..taken + run]);
            (at, taken) = (next, taken + run);
        }
    }
}

fn bytes(elements: u64, unit: usize) -> usize {
    usize::try_from(elements).map_or(usize::MAX, |elements| elements.saturating_mul(unit))
}

/// Refuses tensors whose shapes differ and cannot be brought together, all of them in one message.
///
/// # Errors
///
/// [`Kind::Mismatch`], unless such tensors are to be skipped.
pub fn refuse_mismatches(job: &Job, inputs: &[Checkpoint], assignments: &[Assignment]) -> Result<()> {
    if job.mismatch() == Mismatch::Skip {
        return Ok(());
    }
    let mut described = Vec::new();
    for assignment in assignments {
        let found =
            assignment.sources.iter().filter_map(|(input, name)| Some((*input, inputs[*input].tensors().get(name)?)));
        let found: Vec<_> = found.collect();
        let shapes: Vec<&[u64]> = found.iter().map(|(_, entry)| entry.shape.as_slice()).collect();
        // What is not averaged is taken from the base when something is to be done about shapes at all.
        let carried = found.iter().any(|(_, entry)| !entry.dtype.is_mergeable()) && job.mismatch() != Mismatch::Error;
        if carried || common(&shapes, job.mismatch()).is_some() {
            continue;
        }
        let Some((&(first, one), (other, two))) =
            found.first().and_then(|one| Some((one, *found.iter().find(|two| two.1.shape != one.1.shape)?)))
        else {
            continue;
        };
        let root = |input: usize| inputs[input].root().display();
        described.push(format!(
            "`{}` is {:?} in {} and {:?} in {}",
            assignment.name.escape_debug(),
            one.shape,
            root(first),
            two.shape,
            root(other)
        ));
    }
    if described.is_empty() {
        return Ok(());
    }
    let more = described.len().saturating_sub(LISTED);
    let tail = if more > 0 { format!("; and {more} more tensors") } else { String::new() };
    described.truncate(LISTED);
    let hint = "merge models of one size, or say `mismatch: pad` to fill smaller matrices up with zeros, `crop` to cut \
                the first axis to what all have, `skip` to take such tensors from the base";
    Err(Error::new(Kind::Mismatch, "inputs differ in their shapes", "inputs", described.join("; ") + &tail)
        .with_hint(hint))
}

/// What a user should know about tensors whose shapes differ and are brought together.
pub fn warnings(job: &Job, inputs: &[Checkpoint], tensors: &[TensorPlan]) -> Vec<String> {
    let said = match job.mismatch() {
        Mismatch::Pad => "shapes differ, and what smaller tensors lack is filled up with zeros",
        Mismatch::Crop => "shapes differ, and larger tensors are cut to what all have",
        Mismatch::Error | Mismatch::Skip => return vec![],
    };
    let differ = |tensor: &&TensorPlan| {
        let mut shapes = tensor.sources.iter().map(|source| &inputs[source.input].tensors()[&source.name].shape);
        let first = shapes.next();
        shapes.any(|shape| Some(shape) != first)
    };
    let names: Vec<&str> = tensors.iter().filter(differ).map(|tensor| tensor.name.as_str()).collect();
    if names.is_empty() { vec![] } else { vec![format!("{said}: {}", named(&names))] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_brought_together_as_the_policy_says() {
        let pad = |shapes: &[&[u64]]| common(shapes, Mismatch::Pad);
        let crop = |shapes: &[&[u64]]| common(shapes, Mismatch::Crop);
        assert_eq!(pad(&[&[5, 4], &[3, 6]]), Some(vec![5, 6]));
        assert_eq!(pad(&[&[2, 5, 4], &[2, 3, 6]]), Some(vec![2, 5, 6]));
        assert_eq!(pad(&[&[3, 5, 4], &[2, 5, 4]]), None);
        assert_eq!(pad(&[&[5], &[3]]), Some(vec![5]));
        assert_eq!(pad(&[&[5], &[5, 1]]), None);
        assert_eq!(crop(&[&[5, 4], &[3, 4], &[9, 4]]), Some(vec![3, 4]));
        assert_eq!(crop(&[&[5, 4], &[3, 5]]), None);
        assert_eq!(common(&[&[5], &[4]], Mismatch::Error), None);
        assert_eq!(common(&[&[5], &[5]], Mismatch::Error), Some(vec![5]));
    }

    #[test]
    fn any_window_of_a_placement_is_that_of_the_whole() {
        let shapes: [(&[u64], &[u64]); 6] = [
            (&[3, 4], &[5, 7]),
            (&[3, 4], &[3, 7]),
            (&[3, 4], &[5, 4]),
            (&[2, 2, 3], &[2, 4, 3]),
            (&[3], &[7]),
            (&[0, 4], &[2, 4]),
        ];
        for (small, wide) in shapes {
            let placement = Placement::new(small, wide).expect("they differ");
            let (count, total): (u64, u64) = (small.iter().product(), wide.iter().product());
            let from: Vec<u8> = (1..=u8::try_from(count * 2).expect("small")).collect();
            let mut whole = vec![0; usize::try_from(total * 2).expect("small")];
            assert_eq!(placement.range(0, total), 0..count);
            placement.place(0, 2, &from, &mut whole);
            let placed: Vec<u8> = whole.iter().copied().filter(|byte| *byte != 0).collect();
            assert_eq!(placed, from);
            for start in 0..total {
                for len in 0..=total - start {
                    let range = placement.range(start, len);
                    let part = &from[bytes(range.start, 2)..bytes(range.end, 2)];
                    let mut window = vec![0; bytes(len, 2)];
                    placement.place(start, 2, part, &mut window);
                    assert_eq!(
                        window,
                        whole[bytes(start, 2)..bytes(start + len, 2)],
                        "{small:?} {wide:?} {start} {len}"
                    );
                }
            }
        }
        assert_eq!(Placement::new(&[3, 4], &[3, 4]), None);
    }
}
