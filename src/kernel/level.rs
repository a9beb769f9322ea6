//! Instruction sets: the levels, and running a task compiled for one of them.

use super::simd::{Portable, Simd};
#[cfg(target_arch = "x86_64")]
use super::x86;

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The instructions that every machine of the target has.
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

    /// Tells if this machine has the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::has_avx512(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Runs `task` compiled for this level.
    ///
    /// The level must be available; a [`super::Kernels`] exists only for available levels.
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            Self::Portable => task.run::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                debug_assert!(self.is_available(), "level is not available");
                // SAFETY: levels reach this point only inside a `Kernels`, which checks that the
                // machine has them.
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
/// `run` and all it calls must be `#[inline(always)]`: only code inlined into the level's entry
/// function is compiled with its instruction set.
pub(super) trait Task {
    type Output;

    fn run<S: Simd>(self) -> Self::Output;
}
