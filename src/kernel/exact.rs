//! Sums whose rounding is kept: what an addition of f64 loses is an f64 itself.
//!
//! The Gram sums of a chunk to twice the digits, the fold of chunk sums and the sums of columns are
//! made of these.

/// Returns the sum, and exactly what its rounding has lost (Knuth 1969). The order of the terms
/// does not matter.
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> [f64; 2] {
    let sum = a + b;
    let part = sum - a;
    [sum, (a - (sum - part)) + (b - part)]
}

/// Adds `next` to `sum`, and to `lost` what the addition rounds away (Neumaier 1974).
#[inline(always)]
pub fn add_compensated(sum: &mut f64, lost: &mut f64, next: f64) {
    let total = *sum + next;
    // The part that is lost is exactly that of the smaller term.
    *lost += if sum.abs() >= next.abs() {
        (*sum - total) + next
    } else {
        (next - total) + *sum
    };
    *sum = total;
}
