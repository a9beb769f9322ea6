//! The pairs i ≤ j among n inputs, in the order of every list of inner products: the upper triangle
//! row by row, (0,0), (0,1) … (0,n-1), (1,1) …

/// The number of pairs i ≤ j among `n` inputs.
pub const fn pair_count(n: usize) -> usize {
    n * (n + 1) / 2
}

/// The place of the pair (i, j), i ≤ j, among those of `n` inputs.
#[inline(always)]
pub(crate) fn pair_index(n: usize, i: usize, j: usize) -> usize {
    i * n - pair_count(i) + j
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted_row_by_row() {
        let pairs = |n: usize| (0..n).flat_map(move |i| (i..n).map(move |j| (i, j)));
        for n in [0, 1, 2, 5, 100] {
            assert!(
                pairs(n)
                    .map(|(i, j)| pair_index(n, i, j))
                    .eq(0..pair_count(n)),
                "{n}"
            );
        }
    }
}
