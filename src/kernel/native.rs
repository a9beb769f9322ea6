//! The loops over elements for levels that have instructions for 16- and 32-bit floats.
//!
//! They give the bits of the plain loops, which handle the elements at the end that do not fill a
//! register.

use super::element::{Element, Kind, plain, power};
use super::lanes::{LANES, Lanes};
use super::simd::Simd;

/// The operations of such a level besides its [`Simd`] registers.
///
/// # Safety
///
/// The methods read or write one register's worth of elements (two for pairs) at the pointer, at
/// any alignment.
pub(super) trait Native: Simd {
    fn sub(a: Self::Register, b: Self::Register) -> Self::Register;
    fn max(a: Self::Register, b: Self::Register) -> Self::Register;
    fn and(a: Self::Register, b: Self::Register) -> Self::Register;
    fn or(a: Self::Register, b: Self::Register) -> Self::Register;
    /// Tells if every number is below `limit`.
    fn all_below(value: Self::Register, limit: f64) -> bool;
    unsafe fn load_f64(from: *const f64) -> Self::Register;
    unsafe fn store_f64(value: Self::Register, to: *mut f64);
    unsafe fn load_f32(from: *const u8) -> Self::Register;
    unsafe fn load_f16(from: *const u8) -> Self::Register;
    unsafe fn load_bf16(from: *const u8) -> Self::Register;
    /// The elements at even indices and those at odd indices.
    unsafe fn load_bf16_pair(from: *const u8) -> [Self::Register; 2];
    /// Rounds to nearest even.
    unsafe fn store_f32(value: Self::Register, to: *mut u8);
    /// The numbers must be representable.
    unsafe fn store_f16(value: Self::Register, to: *mut u8);
    /// The numbers must be representable.
    unsafe fn store_bf16(value: Self::Register, to: *mut u8);
    /// The elements at even indices and those at odd indices; the numbers must be representable.
    unsafe fn store_bf16_pair(pair: [Self::Register; 2], to: *mut u8);
}

/// One register's worth of elements from `at` on.
///
/// # Safety
///
/// `at + WIDTH` must not exceed the length, and `E::KIND` must not be [`Kind::Other`].
#[inline(always)]
unsafe fn load<S: Native, E: Element>(elements: &[E::Bytes], at: usize) -> S::Register {
    debug_assert!(
        at + S::WIDTH <= elements.len(),
        "register beyond the elements"
    );
    // SAFETY: the caller keeps the register within the elements.
    unsafe {
        let from = elements.as_ptr().add(at).cast();
        match E::KIND {
            Kind::F32 => S::load_f32(from),
            Kind::F16 => S::load_f16(from),
            Kind::BF16 => S::load_bf16(from),
            Kind::Other => unreachable!("only native kinds are loaded into registers"),
        }
    }
}

/// Stores one register's worth of representable numbers.
///
/// # Safety
///
/// There must be room for as many elements at `to`, and `E::KIND` must not be [`Kind::Other`].
#[inline(always)]
unsafe fn store<S: Native, E: Element>(value: S::Register, to: *mut E::Bytes) {
    // SAFETY: the caller's.
    unsafe {
        match E::KIND {
            Kind::F32 => S::store_f32(value, to.cast()),
            Kind::F16 => S::store_f16(value, to.cast()),
            Kind::BF16 => S::store_bf16(value, to.cast()),
            Kind::Other => unreachable!("only native kinds are stored from registers"),
        }
    }
}

/// Widens every element.
#[inline(always)]
pub(super) fn widen<S: Native, E: Element>(elements: &[E::Bytes], wide: &mut [f64]) {
    let whole = if E::KIND == Kind::Other {
        0
    } else {
        whole::<S>(elements.len())
    };
    let wide = &mut wide[..elements.len()];
    for at in (0..whole).step_by(S::WIDTH) {
        // SAFETY: both slices are at least `whole` long, a multiple of the width.
        unsafe { S::store_f64(load::<S, E>(elements, at), wide.as_mut_ptr().add(at)) }
    }
    plain::widen::<E>(&elements[whole..], &mut wide[whole..]);
}

/// Adds `weights[i]`·`inputs[i][k]` to `sums[k]`, i in order; `FRESH` sums begin as the first term.
#[inline(always)]
pub(super) fn add_terms<S: Native, E: Element, const N: usize, const FRESH: bool>(
    weights: [f64; N],
    inputs: [&[E::Bytes]; N],
    sums: &mut [f64],
) {
    let whole = if E::KIND == Kind::Other {
        0
    } else {
        whole::<S>(sums.len())
    };
    let inputs = inputs.map(|input| &input[..sums.len()]);
    let mut factors = [S::splat(0.0); N];
    for i in 0..N {
        factors[i] = S::splat(weights[i]);
    }
    for at in (0..whole).step_by(S::WIDTH) {
        // SAFETY: the sums and every input are at least `whole` long, a multiple of the width.
        unsafe {
            let sum = sums.as_mut_ptr().add(at);
            let mut total = S::mul(factors[0], load::<S, E>(inputs[0], at));
            if !FRESH {
                total = S::add(S::load_f64(sum), total);
            }
            for i in 1..N {
                total = S::add(total, S::mul(factors[i], load::<S, E>(inputs[i], at)));
            }
            S::store_f64(total, sum);
        }
    }
    plain::add_terms::<E, N, FRESH>(
        weights,
        inputs.map(|input| &input[whole..]),
        &mut sums[whole..],
    );
}

/// Rounds to a format by adding and subtracting 1.5·2^52 of its steps, so that the f64 adder itself
/// rounds to a step: once, to nearest even, subnormals included.
struct Rounding<S: Native> {
    exponent: S::Register,
    sign: S::Register,
    /// The smallest normal number of the format.
    smallest: S::Register,
    shift: S::Register,
    /// The largest binade of the numbers rounded so far.
    largest: S::Register,
}

impl<S: Native> Rounding<S> {
    #[inline(always)]
    fn new<E: Element>() -> Self {
        let (steps, smallest) = match E::KIND {
            Kind::F16 => (10, power(-14)),
            Kind::BF16 => (7, power(-126)),
            // The conversion itself rounds to F32; other types are not rounded here.
            Kind::F32 | Kind::Other => (0, 0.0),
        };
        let (exponent, sign, largest) = (S::splat(f64::INFINITY), S::splat(-0.0), S::splat(0.0));
        Self {
            exponent,
            sign,
            smallest: S::splat(smallest),
            shift: S::splat(1.5 * power(52 - steps)),
            largest,
        }
    }

    /// Returns the number to store for `value`.
    #[inline(always)]
    fn round<E: Element>(&mut self, value: S::Register) -> S::Register {
        let binade = S::and(value, self.exponent);
        self.largest = S::max(self.largest, binade);
        if E::KIND == Kind::F32 {
            return value;
        }
        let shifter = S::mul(S::max(binade, self.smallest), self.shift);
        S::or(
            S::sub(S::add(value, shifter), shifter),
            S::and(value, self.sign),
        )
    }

    /// Tells if all numbers rounded so far are finite and below the format's last binade, in which
    /// the limit lies.
    #[inline(always)]
    fn is_below<E: Element>(&self) -> bool {
        S::all_below(self.largest, E::LAST_BINADE)
    }
}

/// Rounds every value as [`Rounding`] does.
#[inline(always)]
pub(super) fn narrow<S: Native, E: Element>(values: &[f64], rounded: &mut [E::Bytes]) -> bool {
    let whole = if E::KIND == Kind::Other {
        0
    } else {
        whole::<S>(values.len())
    };
    let (head, tail) = values.split_at(whole);
    let (to, rounded_tail) = rounded.split_at_mut(whole);
    let mut rounding = Rounding::<S>::new::<E>();
    for at in (0..whole).step_by(S::WIDTH) {
        // SAFETY: both slices are `whole` long, a multiple of the width.
        unsafe {
            let value = rounding.round::<E>(S::load_f64(head.as_ptr().add(at)));
            store::<S, E>(value, to.as_mut_ptr().add(at).cast());
        }
    }
    narrow_tail::<E>(tail, rounded_tail) && rounding.is_below::<E>()
}

#[inline(always)]
fn narrow_tail<E: Element>(values: &[f64], rounded: &mut [E::Bytes]) -> bool {
    plain::narrow::<E>(values, rounded);
    values
        .iter()
        .fold(true, |below, value| below & (value.abs() < E::LIMIT))
}

/// Correctly rounded division by a whole number of few bits.
///
/// The product with the rounded reciprocal is off by less than two units in the last place; a fused
/// multiply-add gives the remainder exactly; and adding the remainder times the reciprocal rounds
/// as the division does: a quotient by few bits is never as near to a tie as the error of that
/// correction (P. W. Markstein, *Computation of elementary functions on the IBM RISC System/6000
/// processor*, 1990).
struct Division<S: Native> {
    reciprocal: S::Register,
    negative: S::Register,
    sign: S::Register,
}

impl<S: Native> Division<S> {
    #[inline(always)]
    fn by(divisor: f64) -> Self {
        Self {
            reciprocal: S::splat(1.0 / divisor),
            negative: S::splat(-divisor),
            sign: S::splat(-0.0),
        }
    }

    /// Divides; gives NaN for values that are not finite.
    #[inline(always)]
    fn divide(&self, value: S::Register) -> S::Register {
        let near = S::mul(value, self.reciprocal);
        let rest = S::mul_add(near, self.negative, value);
        // A negative zero would become a positive one.
        S::or(
            S::mul_add(rest, self.reciprocal, near),
            S::and(value, self.sign),
        )
    }
}

/// Computes weighted sums, i in order from the first term on, divided with `DIVIDED`, and rounds
/// them as [`Rounding`] does, without leaving the registers.
#[inline(always)]
pub(super) fn mix<S: Native, E: Element, const N: usize, const DIVIDED: bool>(
    weights: [f64; N],
    divisor: f64,
    inputs: [&[E::Bytes]; N],
    rounded: &mut [E::Bytes],
) -> bool {
    if E::KIND == Kind::Other {
        return false;
    }
    let whole = rounded.len() - rounded.len() % (2 * S::WIDTH);
    let inputs = inputs.map(|input| &input[..rounded.len()]);
    let mut factors = [S::splat(0.0); N];
    for i in 0..N {
        factors[i] = S::splat(weights[i]);
    }
    let division = Division::<S>::by(divisor);
    let mut rounding = Rounding::<S>::new::<E>();
    for at in (0..whole).step_by(2 * S::WIDTH) {
        // SAFETY: the output and every input are at least `whole` long, a multiple of two widths.
        unsafe {
            let first = load_pair::<S, E>(inputs[0], at);
            let mut total = [S::mul(factors[0], first[0]), S::mul(factors[0], first[1])];
            for i in 1..N {
                let x = load_pair::<S, E>(inputs[i], at);
                for h in 0..2 {
                    total[h] = S::add(total[h], S::mul(factors[i], x[h]));
                }
            }
            if DIVIDED {
                total = [division.divide(total[0]), division.divide(total[1])];
            }
            let numbers = [rounding.round::<E>(total[0]), rounding.round::<E>(total[1])];
            store_pair::<S, E>(numbers, rounded.as_mut_ptr().add(at));
        }
    }
    let mut sums = [0.0; LANES];
    let sums = &mut sums[..rounded.len() - whole];
    plain::add_terms::<E, N, true>(weights, inputs.map(|input| &input[whole..]), sums);
    plain::divide(sums, divisor);
    narrow_tail::<E>(sums, &mut rounded[whole..]) && rounding.is_below::<E>()
}

/// Adds the products of a few inputs, with all accumulators in registers for the whole length; `U`
/// pairs of registers make up the lanes.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "counted loops are unrolled, their accumulators kept in registers"
)]
pub(super) fn gram<S: Native, E: Element, const N: usize, const U: usize>(
    inputs: [&[E::Bytes]; N],
    sums: &mut [Lanes],
) -> usize {
    debug_assert_eq!(U * 2 * S::WIDTH, LANES, "the units make up the lanes");
    let steps = inputs[0].len() / LANES;
    let inputs = inputs.map(|input| &input[..steps * LANES]);
    let mut acc = [[[[S::splat(0.0); 2]; U]; N]; N];
    for step in 0..steps {
        for u in 0..U {
            let at = step * LANES + u * 2 * S::WIDTH;
            // A loop, since a closure would not be inlined into the entry function and would lose
            // its instruction set.
            let mut x = [[S::splat(0.0); 2]; N];
            for i in 0..N {
                // SAFETY: every input is `steps` times the lanes long.
                x[i] = unsafe { load_pair::<S, E>(inputs[i], at) };
            }
            for i in 0..N {
                for j in i..N {
                    for h in 0..2 {
                        acc[i][j][u][h] = S::mul_add(x[i][h], x[j][h], acc[i][j][u][h]);
                    }
                }
            }
        }
    }
    let mut pair = 0;
    for i in 0..N {
        for j in i..N {
            for u in 0..U {
                spread::<S, E>(acc[i][j][u], u, &mut sums[pair]);
            }
            pair += 1;
        }
    }
    steps * LANES
}

/// Two registers' worth of elements: the even and the odd ones for BF16, where that saves a
/// shuffle, otherwise one half after the other.
#[inline(always)]
unsafe fn load_pair<S: Native, E: Element>(elements: &[E::Bytes], at: usize) -> [S::Register; 2] {
    debug_assert!(
        at + 2 * S::WIDTH <= elements.len(),
        "registers beyond the elements"
    );
    // SAFETY: the caller keeps both registers within the elements.
    unsafe {
        match E::KIND {
            Kind::BF16 => S::load_bf16_pair(elements.as_ptr().add(at).cast()),
            _ => [
                load::<S, E>(elements, at),
                load::<S, E>(elements, at + S::WIDTH),
            ],
        }
    }
}

/// Stores two registers' worth of representable numbers in the order of [`load_pair`].
///
/// # Safety
///
/// As for [`store`], for twice as many elements.
#[inline(always)]
unsafe fn store_pair<S: Native, E: Element>(pair: [S::Register; 2], to: *mut E::Bytes) {
    // SAFETY: the caller's.
    unsafe {
        if E::KIND == Kind::BF16 {
            S::store_bf16_pair(pair, to.cast());
        } else {
            store::<S, E>(pair[0], to);
            store::<S, E>(pair[1], to.add(S::WIDTH));
        }
    }
}

/// Stores sums accumulated in [`load_pair`]'s order as unit `u` of the lanes.
#[inline(always)]
fn spread<S: Native, E: Element>(pair: [S::Register; 2], u: usize, lanes: &mut Lanes) {
    let mut halves = Lanes::ZERO;
    S::store(pair[0], &mut halves, 0);
    S::store(pair[1], &mut halves, 1);
    let unit = &mut lanes.0[u * 2 * S::WIDTH..][..2 * S::WIDTH];
    for (l, lane) in unit.iter_mut().enumerate() {
        *lane = if E::KIND == Kind::BF16 {
            halves.0[l % 2 * S::WIDTH + l / 2]
        } else {
            halves.0[l]
        };
    }
}

#[inline(always)]
fn whole<S: Simd>(len: usize) -> usize {
    len - len % S::WIDTH
}
