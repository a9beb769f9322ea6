//! Weighted sums rounded once, conversions, and the search for non-finite elements.

use super::Elements;
use super::element::{Element, plain, with_element};
use super::lanes::{LANES, Scratch, TILE, flat};
use super::level::{Level, Task};
use super::simd::Simd;
use super::tiles::{check_output, tile_range};
use crate::dtype::Dtype;

/// Terms that are added in one sweep over the sums.
const GROUP: usize = 4;

/// The largest divisor: so few bits leave room for an exact division in registers.
pub const MOST_DIVISOR: f64 = 1_048_576.0;

/// The outcome of rounding sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combined {
    /// The number of finite sums that became infinite or NaN.
    pub overflows: u64,
    /// True if every sum was finite; then so is every element of an input whose weight is not zero.
    pub finite: bool,
}

impl Combined {
    pub(super) const PLAIN: Self = Self {
        overflows: 0,
        finite: true,
    };

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            overflows: self.overflows + other.overflows,
            finite: self.finite && other.finite,
        }
    }
}

pub(super) fn combine(
    level: Level,
    terms: &[(f64, Elements<'_>)],
    divisor: f64,
    out: Dtype,
    scratch: &mut Scratch,
    dst: &mut [u8],
) -> Combined {
    check_output(terms.iter().map(|(_, input)| *input), out, dst);
    assert!(
        (1.0..=MOST_DIVISOR).contains(&divisor) && divisor.fract() == 0.0,
        "{divisor} is no divisor"
    );
    if terms.is_empty() {
        dst.fill(0);
        return Combined::PLAIN;
    }
    let sums = flat(scratch.rows(TILE / LANES));
    level.run(Combine {
        terms,
        divisor,
        out,
        sums,
        dst,
    })
}

struct Combine<'a> {
    terms: &'a [(f64, Elements<'a>)],
    divisor: f64,
    out: Dtype,
    sums: &'a mut [f64],
    dst: &'a mut [u8],
}

impl Task for Combine<'_> {
    type Output = Combined;

    #[inline(always)]
    fn run<S: Simd>(self) -> Combined {
        if self.terms.len() <= GROUP && self.terms.iter().all(|(_, input)| input.dtype == self.out)
        {
            let done = with_element!(self.out, E => mix::<S, E>(self.terms, self.divisor, E::split_mut(self.dst)));
            if done {
                return Combined::PLAIN;
            }
        }
        let size = self.out.bytes();
        let mut found = Combined::PLAIN;
        for (tile, dst) in self.dst.chunks_mut(TILE * size).enumerate() {
            let range = tile_range(tile, dst, size);
            let sums = &mut self.sums[..range.len()];
            let mut rest = self.terms;
            while !rest.is_empty() {
                let dtype = rest[0].1.dtype;
                let same = rest
                    .iter()
                    .take(GROUP)
                    .take_while(|(_, input)| input.dtype == dtype)
                    .count();
                let (group, after) = rest.split_at(same);
                let fresh = rest.len() == self.terms.len();
                add_group::<S>(group, range.start, fresh, sums);
                rest = after;
            }
            plain::divide(sums, self.divisor);
            found = found.and(narrow::<S>(self.out, sums, dst));
        }
        found
    }
}

/// Rounds the sums of up to [`GROUP`] terms of the output's own type, if the level can and no sum
/// is near overflow.
#[inline(always)]
fn mix<S: Simd, E: Element>(
    terms: &[(f64, Elements<'_>)],
    divisor: f64,
    rounded: &mut [E::Bytes],
) -> bool {
    match terms {
        [a] => mixed::<S, E, 1>([a], divisor, rounded),
        [a, b] => mixed::<S, E, 2>([a, b], divisor, rounded),
        [a, b, c] => mixed::<S, E, 3>([a, b, c], divisor, rounded),
        [a, b, c, d] => mixed::<S, E, 4>([a, b, c, d], divisor, rounded),
        _ => false,
    }
}

#[inline(always)]
fn mixed<S: Simd, E: Element, const N: usize>(
    terms: [&(f64, Elements<'_>); N],
    divisor: f64,
    rounded: &mut [E::Bytes],
) -> bool {
    let (weights, inputs) = (
        terms.map(|(weight, _)| *weight),
        terms.map(|(_, input)| E::split(input.bytes)),
    );
    if divisor == 1.0 {
        S::mix::<E, N, false>(weights, divisor, inputs, rounded)
    } else {
        S::mix::<E, N, true>(weights, divisor, inputs, rounded)
    }
}

/// Adds up to [`GROUP`] terms of one dtype to the sums.
#[inline(always)]
fn add_group<S: Simd>(terms: &[(f64, Elements<'_>)], start: usize, fresh: bool, sums: &mut [f64]) {
    let range = start..start + sums.len();
    with_element!(terms[0].1.dtype, E => {
        match terms {
            [a] => add::<S, E, 1>([a], range, fresh, sums),
            [a, b] => add::<S, E, 2>([a, b], range, fresh, sums),
            [a, b, c] => add::<S, E, 3>([a, b, c], range, fresh, sums),
            [a, b, c, d] => add::<S, E, 4>([a, b, c, d], range, fresh, sums),
            _ => unreachable!("a group holds one to four terms"),
        }
    });
}

#[inline(always)]
fn add<S: Simd, E: Element, const N: usize>(
    terms: [&(f64, Elements<'_>); N],
    range: std::ops::Range<usize>,
    fresh: bool,
    sums: &mut [f64],
) {
    let weights = terms.map(|(weight, _)| *weight);
    let inputs = terms.map(|(_, input)| &E::split(input.slice(range.clone()).bytes)[..sums.len()]);
    if fresh {
        S::add_terms::<E, N, true>(weights, inputs, sums);
    } else {
        S::add_terms::<E, N, false>(weights, inputs, sums);
    }
}

/// Rounds the sums to `out`.
#[inline(always)]
pub(super) fn narrow<S: Simd>(out: Dtype, sums: &[f64], dst: &mut [u8]) -> Combined {
    with_element!(out, E => {
        let rounded = E::split_mut(dst);
        if S::narrow::<E>(sums, rounded) {
            return Combined::PLAIN;
        }
        plain::narrow::<E>(sums, rounded);
        Combined { overflows: count_overflows::<E>(sums, rounded), finite: sums.iter().all(|sum| sum.is_finite()) }
    })
}

/// Counts finite values whose rounded form is not finite.
#[cold]
#[inline(never)]
fn count_overflows<E: Element>(sums: &[f64], rounded: &[E::Bytes]) -> u64 {
    let overflows =
        |(sum, &bytes): (&f64, &E::Bytes)| sum.is_finite() && !E::widen(bytes).is_finite();
    sums.iter()
        .zip(rounded)
        .map(|pair| u64::from(overflows(pair)))
        .sum()
}

pub(super) fn convert(level: Level, input: Elements<'_>, out: Dtype, dst: &mut [u8]) -> u64 {
    assert!(
        input.dtype.is_mergeable() && out.is_mergeable(),
        "{} to {out} is no rounding",
        input.dtype
    );
    if input.dtype == out {
        dst.copy_from_slice(input.bytes);
        return 0;
    }
    assert_eq!(
        dst.len(),
        input.len() * out.bytes(),
        "the output's length is not the input's"
    );
    level
        .run(Combine {
            terms: &[(1.0, input)],
            divisor: 1.0,
            out,
            sums: &mut [0.0; TILE],
            dst,
        })
        .overflows
}

pub(super) fn first_nonfinite(level: Level, input: Elements<'_>) -> Option<usize> {
    assert!(
        input.dtype.is_mergeable(),
        "{} elements are not averaged",
        input.dtype
    );
    level.run(FirstNonfinite(input))
}

struct FirstNonfinite<'a>(Elements<'a>);

impl Task for FirstNonfinite<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Option<usize> {
        with_element!(self.0.dtype, E => {
            for (tile, elements) in E::split(self.0.bytes).chunks(TILE).enumerate() {
                let mut finite = true;
                for &element in elements {
                    finite &= E::is_finite(element);
                }
                if !finite {
                    let at = elements.iter().position(|&element| !E::is_finite(element));
                    return at.map(|at| tile * TILE + at);
                }
            }
            None
        })
    }
}
