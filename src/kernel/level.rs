//! Instruction sets: which there are, and running a task compiled for one of them.

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What every machine of the target has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// Every level, slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The level's name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this machine has the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::has_avx2() && x86::has_avx512(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Runs `task` compiled for this level.
    ///
    /// The level must be available; a [`super::Kernels`] exists only for such.
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            Self::Portable => task.run::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                debug_assert!(self.is_available(), "level is not available");
                // SAFETY: levels reach this point only inside a `Kernels`, which checks that the machine has them.
                unsafe { x86::run_avx2(task) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                debug_assert!(self.is_available(), "level is not available");
                // SAFETY: as above.
                unsafe { x86::run_avx512(task) }
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("level is not available on this target"),
        }
    }
}

/// A loop that is compiled once per level.
///
/// `run` and all it calls must be `#[inline(always)]`: only what is inlined into the level's entry function is compiled
/// with its instruction set.
pub(super) trait Task {
    type Output;

    fn run<S: Simd>(self) -> Self::Output;
}

/// Registers of f64 at one level.
///
/// Implementations may use instructions of their level, so their methods must only run inside [`Level::run`].
pub(super) trait Simd {
    /// Numbers in one register.
    const WIDTH: usize;
    /// Inputs that a block multiplies four inputs with, so that all accumulators stay in registers.
    const COLUMNS: usize;
    /// Whether `mul_add` rounds once; otherwise it is a multiplication, then an addition.
    const FUSES: bool;

    type Register: Copy;

    fn zero() -> Self::Register;
    /// The `group`-th register of the lanes.
    fn load(lanes: &Lanes, group: usize) -> Self::Register;
    fn store(value: Self::Register, lanes: &mut Lanes, group: usize);
    fn add(a: Self::Register, b: Self::Register) -> Self::Register;
    fn mul(a: Self::Register, b: Self::Register) -> Self::Register;
    /// a·b + c.
    fn mul_add(a: Self::Register, b: Self::Register, c: Self::Register) -> Self::Register;
}

use super::lanes::Lanes;

/// The registers of [`Level::Portable`].
pub(super) struct Portable;

impl Simd for Portable {
    const WIDTH: usize = 2;
    const COLUMNS: usize = 2;
    const FUSES: bool = false;

    type Register = [f64; 2];

    #[inline(always)]
    fn zero() -> [f64; 2] {
        [0.0; 2]
    }

    #[inline(always)]
    fn load(lanes: &Lanes, group: usize) -> [f64; 2] {
        [lanes.0[2 * group], lanes.0[2 * group + 1]]
    }

    #[inline(always)]
    fn store(value: [f64; 2], lanes: &mut Lanes, group: usize) {
        lanes.0[2 * group] = value[0];
        lanes.0[2 * group + 1] = value[1];
    }

    #[inline(always)]
    fn add(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }

    #[inline(always)]
    fn mul(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
        [a[0] * b[0], a[1] * b[1]]
    }

    #[inline(always)]
    fn mul_add(a: [f64; 2], b: [f64; 2], c: [f64; 2]) -> [f64; 2] {
        Self::add(c, Self::mul(a, b))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Simd, Task};
    use crate::kernel::lanes::{LANES, Lanes};

    pub(super) fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    }

    pub(super) fn has_avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn run_avx2<T: Task>(task: T) -> T::Output {
        task.run::<Avx2>()
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn run_avx512<T: Task>(task: T) -> T::Output {
        task.run::<Avx512>()
    }

    macro_rules! registers {
        ($name:ident, $width:literal, $columns:literal, $register:ty, $zero:ident, $load:ident, $store:ident, $add:ident,
         $mul:ident, $fma:ident) => {
            /// The registers of the level of the same name.
            pub(super) struct $name;

            impl Simd for $name {
                const WIDTH: usize = $width;
                const COLUMNS: usize = $columns;
                const FUSES: bool = true;

                type Register = $register;

                #[inline(always)]
                fn zero() -> $register {
                    // SAFETY: runs only inside the entry function of this level, which has the instruction.
                    unsafe { $zero() }
                }

                #[inline(always)]
                fn load(lanes: &Lanes, group: usize) -> $register {
                    debug_assert!((group + 1) * $width <= LANES, "group beyond the lanes");
                    // SAFETY: as in `zero`; the group lies within the lanes, whose alignment is a register's.
                    unsafe { $load(lanes.0.as_ptr().add(group * $width)) }
                }

                #[inline(always)]
                fn store(value: $register, lanes: &mut Lanes, group: usize) {
                    debug_assert!((group + 1) * $width <= LANES, "group beyond the lanes");
                    // SAFETY: as in `load`.
                    unsafe { $store(lanes.0.as_mut_ptr().add(group * $width), value) }
                }

                #[inline(always)]
                fn add(a: $register, b: $register) -> $register {
                    // SAFETY: as in `zero`.
                    unsafe { $add(a, b) }
                }

                #[inline(always)]
                fn mul(a: $register, b: $register) -> $register {
                    // SAFETY: as in `zero`.
                    unsafe { $mul(a, b) }
                }

                #[inline(always)]
                fn mul_add(a: $register, b: $register, c: $register) -> $register {
                    // SAFETY: as in `zero`.
                    unsafe { $fma(a, b, c) }
                }
            }
        };
    }

    registers!(
        Avx2,
        4,
        3,
        __m256d,
        _mm256_setzero_pd,
        _mm256_load_pd,
        _mm256_store_pd,
        _mm256_add_pd,
        _mm256_mul_pd,
        _mm256_fmadd_pd
    );
    registers!(
        Avx512,
        8,
        4,
        __m512d,
        _mm512_setzero_pd,
        _mm512_load_pd,
        _mm512_store_pd,
        _mm512_add_pd,
        _mm512_mul_pd,
        _mm512_fmadd_pd
    );
}
