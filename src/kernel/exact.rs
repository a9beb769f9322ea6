//! Sums that keep their rounding error: the error of an addition of f64 is an f64 itself.
//!
//! Used by the Gram sums of a chunk to twice the digits, the fold of chunk sums and the sums of
//! columns.

/// Returns the sum and its exact rounding error (Knuth 1969). The order of the terms does not
/// matter.
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> [f64; 2] {
    let sum = a + b;
    let part = sum - a;
    [sum, (a - (sum - part)) + (b - part)]
}

/// Adds `next` to `sum`, and the rounding error of the addition to `lost` (Neumaier 1974).
#[inline(always)]
pub fn add_compensated(sum: &mut f64, lost: &mut f64, next: f64) {
    let total = *sum + next;
    // The addition loses digits of the smaller term only.
    *lost += if sum.abs() >= next.abs() {
        (*sum - total) + next
    } else {
        (next - total) + *sum
    };
    *sum = total;
}
