//! The cross products of two models along the residual stream.

use crate::align::Weights;
use crate::align::matching::problem::{Problem, narrow};
use crate::error::Result;
use crate::linalg::Matrix;
use crate::symmetry::Alignment;
use crate::symmetry::{Node, TensorSymmetry};
use crate::view::Aligned;

/// Rows, or columns, of a tensor that are multiplied together. Products are summed in f32 within
/// such a panel and in f64 over panels, so this is not an option.
const PANEL: usize = 1024;
/// Columns of a row that are read at a time if the stream is on the first axis.
const PIECE: u64 = 1 << 18;

/// The matrix M = Σ_t w_t Σ_o A_t\[o, ·\]ᵀ B_t\[o, ·\] over all tensors that are compared along a
/// residual axis, with o running over everything else; so Σ_t w_t ⟨A_t, Q B_t⟩ = ⟨Q, M⟩ for every
/// map Q.
pub(super) struct Cross {
    /// Row by row, f64.
    pub sums: Vec<f64>,
    /// The value of ⟨Q, M⟩ if the models were equal up to scale.
    pub scale: f64,
}

/// Returns the bytes for computing M for a stream of `size` units, including the result.
pub(super) fn bytes(size: u64) -> u64 {
    size * size * (8 + 4) + 2 * 4 * PANEL as u64 * size
}

/// Computes the products of the reference with the model `moved`, over `tensors`.
pub(super) fn cross(
    problem: &Problem<'_>,
    moved: &dyn Weights,
    alignment: &Alignment,
    tensors: &[&str],
    residual: usize,
) -> Result<Cross> {
    let size = problem.symmetries.groups[residual].units;
    let mut cross = Cross {
        sums: vec![0.0; size * size],
        scale: 0.0,
    };
    for &tensor in tensors {
        let norms = problem.norms(tensor, &name_in_moving(alignment, tensor)?)?;
        let weight = problem.weight(norms);
        if weight <= 0.0 {
            continue;
        }
        cross.scale += weight * norms[0] * norms[1];
        let symmetry = &alignment.symmetries.tensors[tensor];
        let others = usize::try_from(symmetry.shape.iter().product::<u64>()).unwrap_or(usize::MAX)
            / size.max(1);
        let part = StreamPart {
            tensor,
            others,
            is_first: is_first(symmetry, residual),
            weight: narrow(weight),
        };
        part.add_to(&mut cross, problem, [problem.reference, moved])?;
    }
    Ok(cross)
}

/// A tensor as a matrix of which one axis is the residual stream.
struct StreamPart<'a> {
    tensor: &'a str,
    /// The length of the other axis.
    others: usize,
    /// True if the stream is the first axis.
    is_first: bool,
    weight: f32,
}

impl StreamPart<'_> {
    /// Adds the products of both models, a panel of the other axis at a time.
    fn add_to(
        &self,
        cross: &mut Cross,
        problem: &Problem<'_>,
        models: [&dyn Weights; 2],
    ) -> Result<()> {
        let size = cross.sums.len().isqrt();
        let mut products = vec![0.0_f32; size * size];
        let mut panels = [Vec::new(), Vec::new()];
        let width = self.is_first.then_some(self.others);
        for start in (0..self.others).step_by(PANEL) {
            problem.watch.go_on()?;
            let count = PANEL.min(self.others - start);
            for (panel, weights) in panels.iter_mut().zip(models) {
                panel.resize(count * size, 0.0);
                read(weights, self.tensor, width, start, panel, size)?;
            }
            let [a, b] = panels.each_ref().map(|panel| match self.is_first {
                true => Matrix::new(panel, size, count),
                false => Matrix::new(panel, count, size).transposed(),
            });
            let mut sum = problem.options.backend.begin(size, &mut products)?;
            sum.add(self.weight, a, b.transposed())?;
            sum.finish()?;
            for (sum, product) in cross.sums.iter_mut().zip(&products) {
                *sum += f64::from(*product);
            }
            let operations = 2 * (size as u64).pow(2) * count as u64;
            problem.watch.advanced(operations);
        }
        Ok(())
    }
}

/// Names the moving model's tensor that becomes `tensor`, to look up its norm: experts change their
/// names.
fn name_in_moving(alignment: &Alignment, tensor: &str) -> Result<String> {
    match &alignment.symmetries.tensors[tensor].index {
        Some(_) => Aligned::source_name(alignment, tensor),
        None => Ok(tensor.to_owned()),
    }
}

fn is_first(symmetry: &TensorSymmetry, residual: usize) -> bool {
    matches!(symmetry.axes.first(), Some(Node::Group { group, .. }) if *group == residual)
}

/// Fills `panel` with rows from `start` on, or with columns from `start` on if the tensor has rows
/// of `width`.
fn read(
    weights: &dyn Weights,
    tensor: &str,
    width: Option<usize>,
    start: usize,
    panel: &mut [f32],
    size: usize,
) -> Result<()> {
    let mut numbers = weights.tensor(tensor)?;
    let Some(width) = width else {
        let from = (start * size) as u64;
        return numbers.read(from..from + panel.len() as u64, panel);
    };
    let count = panel.len() / size;
    if count == width {
        for (piece, at) in panel
            .chunks_mut(usize::try_from(PIECE).expect("a piece fits"))
            .zip(0..)
        {
            numbers.read(at * PIECE..at * PIECE + piece.len() as u64, piece)?;
        }
        return Ok(());
    }
    for (row, piece) in panel.chunks_exact_mut(count).enumerate() {
        let from = (row * width + start) as u64;
        numbers.read(from..from + count as u64, piece)?;
    }
    Ok(())
}
