//! Products of matrices by cuBLAS, which is loaded on the first product if it is installed.

use std::sync::{Mutex, PoisonError};

use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys::{self, cublasMath_t, cublasOperation_t};

use super::{Address, Multiplication, Stream};

/// A handle of the library, used for one product at a time, since it holds the stream.
pub(super) struct Blas(Mutex<Handle>);

struct Handle(sys::cublasHandle_t);

// SAFETY: a handle may be used from any thread that has its context set, by one at a time.
unsafe impl Send for Handle {}

/// A product as BLAS has it, of matrices that lie column by column: C ← α op(A) op(B) + β C, op(A)
/// m × k, op(B) k × n.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Gemm {
    transposed: [bool; 2],
    sizes: [i32; 3],
    factors: [Address; 2],
    pitches: [i32; 2],
    result: Address,
    pitch: i32,
    alpha: f32,
    beta: f32,
}

impl Gemm {
    /// Converts a product to BLAS's column-major form: a row-major matrix read by columns is its
    /// transpose, so this is Cᵀ ← α rightᵀ leftᵀ + β Cᵀ. `None` when a size exceeds an i32.
    fn of(product: &Multiplication) -> Option<Self> {
        let Multiplication {
            left,
            right,
            sums,
            stride,
            rows,
            columns,
            depth,
            scale,
            fresh,
        } = *product;
        let size = |size: usize| i32::try_from(size).ok();
        Some(Self {
            transposed: [right.transposed, left.transposed],
            sizes: [size(columns)?, size(rows)?, size(depth)?],
            factors: [right.at, left.at],
            pitches: [
                size(if right.transposed { depth } else { columns })?,
                size(if left.transposed { rows } else { depth })?,
            ],
            result: sums,
            pitch: size(stride)?,
            alpha: scale,
            beta: if fresh { 0.0 } else { 1.0 },
        })
    }
}

impl Blas {
    /// Loads the library, if it is installed and works with the driver; the context must be the
    /// calling thread's.
    pub fn load() -> Option<Self> {
        // SAFETY: loading the library runs its initialisers, which is what is asked for.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let handle = result::create_handle().ok()?;
        let own = Self(Mutex::new(Handle(handle)));
        // f32 throughout: no TF32, nor anything else with fewer digits.
        // SAFETY: the handle was just made.
        unsafe { sys::cublasSetMathMode(handle, cublasMath_t::CUBLAS_DEFAULT_MATH) }
            .result()
            .ok()?;
        Some(own)
    }

    /// Queues a product.
    ///
    /// # Safety
    ///
    /// As [`Driver::multiply`](super::Driver::multiply); the context is the calling thread's.
    pub unsafe fn multiply(
        &self,
        stream: Stream,
        product: &Multiplication,
    ) -> Result<(), CublasError> {
        let gemm = Gemm::of(product).ok_or(CublasError(
            sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
        ))?;
        let handle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [a, b] = gemm
            .factors
            .map(|factor| std::ptr::with_exposed_provenance(address(factor)));
        let [m, n, k] = gemm.sizes;
        // SAFETY: the caller's; scalars are read before the call returns, as the handle's pointers
        // are to the host.
        unsafe {
            result::set_stream(handle.0, std::ptr::with_exposed_provenance_mut(stream.0))?;
            result::sgemm(
                handle.0,
                operation(gemm.transposed[0]),
                operation(gemm.transposed[1]),
                m,
                n,
                k,
                &raw const gemm.alpha,
                a,
                gemm.pitches[0],
                b,
                gemm.pitches[1],
                &raw const gemm.beta,
                std::ptr::with_exposed_provenance_mut(address(gemm.result)),
                gemm.pitch,
            )
        }
    }

    /// Ends the library's use of the device; the context must be the calling thread's.
    pub fn unload(self) {
        let handle = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nobody else has the handle. A failure here changes nothing that anybody could do.
        let _ = unsafe { result::destroy_handle(handle.0) };
    }
}

fn address(of: Address) -> usize {
    usize::try_from(of.0).expect("addresses of a device fit those of the host")
}

/// Names a transposition as the library does.
fn operation(transposed: bool) -> cublasOperation_t {
    if transposed {
        cublasOperation_t::CUBLAS_OP_T
    } else {
        cublasOperation_t::CUBLAS_OP_N
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Factor;

    /// The product as the BLAS standard defines it, element by element; addresses count elements of
    /// `memory`.
    fn standard(gemm: &Gemm, memory: &mut [f32]) {
        let index = |number: i32| usize::try_from(number).expect("sizes are not negative");
        let [m, n, k] = gemm.sizes.map(index);
        let at = |factor: usize, row: usize, column: usize| {
            let (row, column) = if gemm.transposed[factor] {
                (column, row)
            } else {
                (row, column)
            };
            address(gemm.factors[factor]) + column * index(gemm.pitches[factor]) + row
        };
        for (row, column) in (0..n).flat_map(|column| (0..m).map(move |row| (row, column))) {
            let sum: f32 = (0..k)
                .map(|term| memory[at(0, row, term)] * memory[at(1, term, column)])
                .sum();
            let entry = &mut memory[address(gemm.result) + column * index(gemm.pitch) + row];
            // With β = 0 the old entry is not read: it may be anything.
            *entry = gemm.alpha * sum
                + if gemm.beta == 0.0 {
                    0.0
                } else {
                    gemm.beta * *entry
                };
        }
    }

    #[test]
    fn every_layout_is_told_to_the_library_as_it_is() {
        let (rows, columns, depth, stride) = (3, 4, 5, 7);
        let small = |number: usize| f32::from(u8::try_from(number % 11).expect("small"));
        let left = |row: usize, term: usize| small(3 * row + 5 * term + 1);
        let right = |term: usize, column: usize| small(2 * term + 7 * column + 3);
        for case in 0..8 {
            let [first, second, fresh] = [1, 2, 4].map(|bit| case & bit != 0);
            let mut memory = vec![f32::NAN; 100];
            for (row, term) in (0..rows).flat_map(|row| (0..depth).map(move |term| (row, term))) {
                memory[if first {
                    term * rows + row
                } else {
                    row * depth + term
                }] = left(row, term);
            }
            for (term, column) in
                (0..depth).flat_map(|term| (0..columns).map(move |column| (term, column)))
            {
                memory[20
                    + if second {
                        column * depth + term
                    } else {
                        term * columns + column
                    }] = right(term, column);
            }
            if !fresh {
                memory[60..60 + stride * rows].fill(100.0);
            }
            let factor = |at, transposed| Factor {
                at: Address(at),
                transposed,
            };
            let (sums, scale) = (Address(60), 0.5);
            let (left_factor, right_factor) = (factor(0, first), factor(20, second));
            let product = Multiplication {
                left: left_factor,
                right: right_factor,
                sums,
                stride,
                rows,
                columns,
                depth,
                scale,
                fresh,
            };
            standard(&Gemm::of(&product).expect("small sizes"), &mut memory);
            for (row, column) in
                (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)))
            {
                let sum: f32 = (0..depth)
                    .map(|term| left(row, term) * right(term, column))
                    .sum();
                let wanted = scale * sum + if fresh { 0.0 } else { 100.0 };
                assert_eq!(
                    memory[60 + row * stride + column],
                    wanted,
                    "case {case}, row {row}, column {column}"
                );
            }
            assert!(
                memory[60 + columns..60 + stride]
                    .iter()
                    .all(|beyond| fresh == beyond.is_nan()),
                "case {case}"
            );
        }
    }
}
