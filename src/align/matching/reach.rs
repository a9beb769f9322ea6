//! Upper bounds on the products of cells, for any moves of the groups that act on them.

use super::moves::{CellPair, CellProducts, Inner, Leaf, order_of};
use super::problem::narrow;
use crate::error::Result;

/// Computes D and X of one pair of one leaf: with the pair (r, s) of the reference and (r', s') of
/// the other model, D = ⟨r, r'⟩ + ⟨s, s'⟩ and X = ⟨s, r'⟩ - ⟨r, s'⟩.
pub(super) fn pair_products(
    products: &CellProducts,
    inner: &Inner<'_>,
    leaf: &Leaf,
    pair: usize,
    unit: usize,
    cells: CellPair,
) -> (f64, f64) {
    let (first, second) = inner.pair(pair);
    let at = |one, two| products.entry(unit, cells.moved(one * leaf.stride, two * leaf.stride));
    (
        at(first, first) + at(second, second),
        at(second, first) - at(first, second),
    )
}

/// Returns an upper bound on the sum of products for one pair of units: the best assignment if one
/// group alone acts, else each cell, or pair of cells, with its best partner.
pub(super) fn bound(products: &CellProducts, inners: &[Inner<'_>], unit: usize) -> Result<f64> {
    let leaves: Vec<&Leaf> = products.leaves.iter().collect();
    if let [leaf] = leaves[..]
        && inners[leaf.inner].is_ordered()
    {
        let flips = leaf.signed && inners[leaf.inner].sign;
        let entries = (0..leaf.size * leaf.size).map(|place| {
            let (own, other) = (place / leaf.size, place % leaf.size);
            let entry = products.entry(unit, CellPair { own, other });
            if flips { entry.abs() } else { entry }
        });
        return Ok(order_of(&entries.map(narrow).collect::<Vec<f32>>(), leaf.size)?.value);
    }
    let mut sum = 0.0;
    each_cell(&leaves, 0, inners, &mut |cell, pair| {
        let mut most = f64::NEG_INFINITY;
        each_target(&leaves, cell, 0, inners, &mut |target| {
            let cells = CellPair {
                own: cell,
                other: target,
            };
            most = most.max(cell_reach(products, inners, &leaves, unit, cells, pair));
        });
        sum += most;
    });
    Ok(sum)
}

/// The pair of a cell that has a leaf of moving pairs: the index of the leaf, and that of the pair.
pub(super) type PairOf = Option<(usize, usize)>;

/// Returns the index of the leaf of moving pairs.
fn paired(leaves: &[&Leaf], inners: &[Inner<'_>]) -> Option<usize> {
    leaves.iter().position(|leaf| {
        let inner = &inners[leaf.inner];
        leaf.signed && inner.is_paired() && inner.is_free()
    })
}

/// Calls `visit` with every cell, but of a pair's two units only with the first, which stands for
/// both.
pub(super) fn each_cell(
    leaves: &[&Leaf],
    start: usize,
    inners: &[Inner<'_>],
    visit: &mut dyn FnMut(usize, PairOf),
) {
    let pairs = paired(leaves, inners);
    let count: usize = leaves.iter().map(|leaf| leaf.size).product();
    for index in 0..count {
        let (mut rest, mut cell, mut pair, mut twin) = (index, start, None, false);
        for (at, leaf) in leaves.iter().enumerate().rev() {
            let unit = rest % leaf.size;
            rest /= leaf.size;
            cell += unit * leaf.stride;
            if pairs == Some(at) {
                let place = inners[leaf.inner].group.place_in_pairs(unit);
                pair = place.map(|(pair, _)| (at, pair));
                twin = place.is_some_and(|(_, first)| !first);
            }
        }
        if !twin {
            visit(cell, pair);
        }
    }
}

/// Calls `visit` with every cell that `cell` can come from, offset by `start`.
pub(super) fn each_target(
    leaves: &[&Leaf],
    cell: usize,
    start: usize,
    inners: &[Inner<'_>],
    visit: &mut dyn FnMut(usize),
) {
    let Some((leaf, rest)) = leaves.split_first() else {
        return visit(start);
    };
    let own = cell / leaf.stride % leaf.size;
    let units = if inners[leaf.inner].is_ordered() {
        0..leaf.size
    } else {
        own..own + 1
    };
    for unit in units {
        each_target(rest, cell, start + unit * leaf.stride, inners, visit);
    }
}

/// Returns the largest product of a cell, or of the pair that it begins, with another, under any
/// sign or turn.
pub(super) fn cell_reach(
    products: &CellProducts,
    inners: &[Inner<'_>],
    leaves: &[&Leaf],
    unit: usize,
    cells: CellPair,
    pair: PairOf,
) -> f64 {
    if let Some((at, pair)) = pair {
        let (leaf, inner) = (leaves[at], &inners[leaves[at].inner]);
        let first = inner.pair(pair).0 * leaf.stride;
        // The pair's products are counted from the cells before its first unit.
        let cells = CellPair {
            own: cells.own - first,
            other: cells.other - first,
        };
        let (along, across) = pair_products(products, inner, leaf, pair, unit, cells);
        return match inner.turn {
            true => along.hypot(across),
            false => along.abs(),
        };
    }
    let entry = products.entry(unit, cells);
    let flips = leaves
        .iter()
        .any(|leaf| leaf.signed && inners[leaf.inner].sign);
    if flips { entry.abs() } else { entry }
}
