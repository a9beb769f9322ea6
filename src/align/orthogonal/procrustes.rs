//! The orthogonal Procrustes problem: the map Q with the largest ⟨Q, M⟩ (Schönemann, "A generalized
//! solution of the orthogonal Procrustes problem", Psychometrika 31, 1966). With M = U S Vᵀ it is Q
//! = U Vᵀ, and ⟨Q, M⟩ the sum of S.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Accum, Mat, MatRef, Par};

use crate::error::{Context, Kind, Result};
use crate::symmetry::OrthogonalMap;

/// Returns the bytes for a stream of `size` units, besides M.
pub(super) fn bytes(size: usize) -> u64 {
    (scratch(size).unaligned_bytes_required() + 4 * 8 * size * size) as u64
}

fn scratch(size: usize) -> faer::dyn_stack::StackReq {
    let full = ComputeSvdVectors::Full;
    svd_scratch::<f64>(size, size, full, full, Par::Seq, Default::default())
}

/// Finds the map with the largest ⟨Q, M⟩, and that product; M is stored row by row.
///
/// # Errors
///
/// [`Kind::NonFinite`] when M cannot be decomposed, which only NaN and infinity can cause.
pub(super) fn procrustes(size: usize, sums: &[f64]) -> Result<(OrthogonalMap, f64)> {
    let context = Context::new(Kind::NonFinite, "cannot match weights", "residual stream");
    let matrix = MatRef::from_row_major_slice(sums, size, size);
    let (mut u, mut v) = (Mat::<f64>::zeros(size, size), Mat::<f64>::zeros(size, size));
    let mut s = Diag::<f64>::zeros(size);
    let mut memory = MemBuffer::new(scratch(size));
    let stack = MemStack::new(&mut memory);
    svd(
        matrix,
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        stack,
        Default::default(),
    )
    .map_err(|error| {
        context.error(format!(
            "the products of both models have no singular values: {error:?}"
        ))
    })?;
    drop(memory);
    // Qᵀ stored column by column is Q stored row by row.
    let mut turned = Mat::<f64>::zeros(size, size);
    matmul(
        turned.as_mut(),
        Accum::Replace,
        v.as_ref(),
        u.as_ref().transpose(),
        1.0,
        Par::Seq,
    );
    let elements = (0..size)
        .flat_map(|row| turned.col_as_slice(row).to_vec())
        .collect();
    let sum = (0..size).map(|at| s.column_vector()[at]).sum();
    let map = OrthogonalMap::new(size, elements).map_err(|cause| context.error(cause))?;
    Ok((map, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_behind_a_positive_matrix_is_found_and_no_turn_of_it_is_better() {
        let size = 12;
        // M = Q P with P positive definite: the polar decomposition.
        let mut seed = 7_u64;
        let mut next = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(seed >> 32).expect("half of it")) / f64::from(u32::MAX) - 0.5
        };
        let noise: Vec<f64> = (0..size * size).map(|_| next()).collect();
        let (any, _) = procrustes(size, &noise).expect("finite");
        let root: Vec<f64> = (0..size * size).map(|_| next()).collect();
        let at = |matrix: &[f64], row: usize, column: usize| matrix[row * size + column];
        let mut positive = vec![0.0; size * size];
        for row in 0..size {
            for column in 0..size {
                positive[row * size + column] = (0..size)
                    .map(|k| at(&root, row, k) * at(&root, column, k))
                    .sum::<f64>()
                    + if row == column { 0.1 } else { 0.0 };
            }
        }
        let product = |q: &[f64], p: &[f64]| -> Vec<f64> {
            let entry = |place: usize| {
                (0..size)
                    .map(|k| at(q, place / size, k) * at(p, k, place % size))
                    .sum::<f64>()
            };
            (0..size * size).map(entry).collect()
        };
        let matrix = product(any.elements(), &positive);
        let (found, value) = procrustes(size, &matrix).expect("finite");
        assert!(
            found
                .elements()
                .iter()
                .zip(any.elements())
                .all(|(x, y)| (x - y).abs() < 1e-12)
        );
        let inner = |q: &[f64]| q.iter().zip(&matrix).map(|(x, y)| x * y).sum::<f64>();
        assert!((inner(found.elements()) - value).abs() < 1e-12 * value);
        for (one, other) in [(0, 1), (3, 11), (5, 6)] {
            let mut turned = found.elements().to_vec();
            let (sin, cos) = 0.01_f64.sin_cos();
            for column in 0..size {
                let (x, y) = (at(&turned, one, column), at(&turned, other, column));
                turned[one * size + column] = cos * x - sin * y;
                turned[other * size + column] = sin * x + cos * y;
            }
            assert!(inner(&turned) < value);
        }
        assert!(procrustes(2, &[f64::NAN, 0.0, 0.0, 1.0]).is_err());
    }
}
