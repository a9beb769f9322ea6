//! AVX2 and AVX-512: detection, entry functions, registers.

use std::arch::x86_64::*;

use super::element::Element;
use super::lanes::{LANES, Lanes};
use super::level::Task;
use super::native::{self, Native};
use super::simd::Simd;

pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

pub(super) fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
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

/// Implements [`Simd`] and the arithmetic of [`Native`] with one intrinsic each.
macro_rules! registers {
    (
        $name:ident, width $width:literal, columns $columns:literal, direct $direct:literal, register $register:ty,
        splat $splat:ident, load $load:ident $loadu:ident, store $store:ident $storeu:ident, add $add:ident,
        sub $sub:ident, mul $mul:ident, fma $fma:ident, max $max:ident, and $and:ident, or $or:ident,
        native { $($native:tt)* }
    ) => {
        /// The registers of the level of the same name.
        pub(super) struct $name;

        impl Simd for $name {
            const WIDTH: usize = $width;
            const COLUMNS: usize = $columns;
            const DIRECT: usize = $direct;
            const FUSES: bool = true;

            type Register = $register;

            #[inline(always)]
            fn splat(value: f64) -> $register {
                // SAFETY: runs only inside the entry function of this level, which has the
                // instruction.
                unsafe { $splat(value) }
            }

            #[inline(always)]
            fn load(lanes: &Lanes, group: usize) -> $register {
                debug_assert!((group + 1) * $width <= LANES, "group beyond the lanes");
                // SAFETY: as in `splat`; the group lies within the lanes, whose alignment is a
                // register's.
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
                // SAFETY: as in `splat`.
                unsafe { $add(a, b) }
            }

            #[inline(always)]
            fn mul(a: $register, b: $register) -> $register {
                // SAFETY: as in `splat`.
                unsafe { $mul(a, b) }
            }

            #[inline(always)]
            fn mul_add(a: $register, b: $register, c: $register) -> $register {
                // SAFETY: as in `splat`.
                unsafe { $fma(a, b, c) }
            }

            #[inline(always)]
            fn widen<E: Element>(elements: &[E::Bytes], wide: &mut [f64]) {
                native::widen::<Self, E>(elements, wide);
            }

            #[inline(always)]
            fn add_terms<E: Element, const N: usize, const FRESH: bool>(
                weights: [f64; N],
                inputs: [&[E::Bytes]; N],
                sums: &mut [f64],
            ) {
                native::add_terms::<Self, E, N, FRESH>(weights, inputs, sums);
            }

            #[inline(always)]
            fn narrow<E: Element>(values: &[f64], rounded: &mut [E::Bytes]) -> bool {
                native::narrow::<Self, E>(values, rounded)
            }

            #[inline(always)]
            fn mix<E: Element, const N: usize, const DIVIDED: bool>(
                weights: [f64; N],
                divisor: f64,
                inputs: [&[E::Bytes]; N],
                rounded: &mut [E::Bytes],
            ) -> bool {
                native::mix::<Self, E, N, DIVIDED>(weights, divisor, inputs, rounded)
            }

            #[inline(always)]
            fn gram<E: Element, const N: usize>(inputs: [&[E::Bytes]; N], sums: &mut [Lanes]) -> usize {
                native::gram::<Self, E, N, { LANES / 2 / $width }>(inputs, sums)
            }
        }

        impl Native for $name {
            #[inline(always)]
            fn sub(a: $register, b: $register) -> $register {
                // SAFETY: as in `splat`.
                unsafe { $sub(a, b) }
            }

            #[inline(always)]
            fn max(a: $register, b: $register) -> $register {
                // SAFETY: as in `splat`.
                unsafe { $max(a, b) }
            }

            #[inline(always)]
            fn and(a: $register, b: $register) -> $register {
                // SAFETY: as in `splat`.
                unsafe { $and(a, b) }
            }

            #[inline(always)]
            fn or(a: $register, b: $register) -> $register {
                // SAFETY: as in `splat`.
                unsafe { $or(a, b) }
            }

            #[inline(always)]
            unsafe fn load_f64(from: *const f64) -> $register {
                // SAFETY: the caller's; any alignment is right for this load.
                unsafe { $loadu(from) }
            }

            #[inline(always)]
            unsafe fn store_f64(value: $register, to: *mut f64) {
                // SAFETY: the caller's; any alignment is right for this store.
                unsafe { $storeu(to, value) }
            }

            $($native)*
        }
    };
}

registers! {
    Avx2, width 4, columns 3, direct 2, register __m256d,
    splat _mm256_set1_pd, load _mm256_load_pd _mm256_loadu_pd, store _mm256_store_pd _mm256_storeu_pd,
    add _mm256_add_pd, sub _mm256_sub_pd, mul _mm256_mul_pd, fma _mm256_fmadd_pd, max _mm256_max_pd,
    and _mm256_and_pd, or _mm256_or_pd,
    native {
        #[inline(always)]
        fn all_below(value: __m256d, limit: f64) -> bool {
            // SAFETY: as in `splat`.
            unsafe { _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_LT_OQ>(value, _mm256_set1_pd(limit))) == 0xf }
        }

        #[inline(always)]
        unsafe fn load_f32(from: *const u8) -> __m256d {
            // SAFETY: the caller's: four elements of four bytes.
            unsafe { _mm256_cvtps_pd(_mm_loadu_ps(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> __m256d {
            // SAFETY: the caller's: four elements of two bytes.
            unsafe { _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> __m256d {
            // SAFETY: the caller's: four elements of two bytes.
            unsafe {
                let upper = _mm_slli_epi32::<16>(_mm_cvtepu16_epi32(_mm_loadl_epi64(from.cast())));
                _mm256_cvtps_pd(_mm_castsi128_ps(upper))
            }
        }

        #[inline(always)]
        unsafe fn load_bf16_pair(from: *const u8) -> [__m256d; 2] {
            // SAFETY: the caller's: eight elements of two bytes.
            unsafe {
                let both = _mm_loadu_si128(from.cast());
                let even = _mm_slli_epi32::<16>(both);
                let odd = _mm_and_si128(both, _mm_set1_epi32(0xffff_0000_u32.cast_signed()));
                [_mm256_cvtps_pd(_mm_castsi128_ps(even)), _mm256_cvtps_pd(_mm_castsi128_ps(odd))]
            }
        }

        #[inline(always)]
        unsafe fn store_f32(value: __m256d, to: *mut u8) {
            // SAFETY: the caller's: four elements of four bytes.
            unsafe { _mm_storeu_ps(to.cast(), _mm256_cvtpd_ps(value)) }
        }

        #[inline(always)]
        unsafe fn store_f16(value: __m256d, to: *mut u8) {
            // SAFETY: the caller's: four elements of two bytes.
            unsafe { _mm_storel_epi64(to.cast(), _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_cvtpd_ps(value))) }
        }

        #[inline(always)]
        unsafe fn store_bf16(value: __m256d, to: *mut u8) {
            // SAFETY: the caller's: four elements of two bytes.
            unsafe {
                let upper = _mm_srli_epi32::<16>(_mm_castps_si128(_mm256_cvtpd_ps(value)));
                _mm_storel_epi64(to.cast(), _mm_packus_epi32(upper, upper));
            }
        }

        #[inline(always)]
        unsafe fn store_bf16_pair(pair: [__m256d; 2], to: *mut u8) {
            // SAFETY: the caller's: eight elements of two bytes.
            unsafe {
                let even = _mm_castps_si128(_mm256_cvtpd_ps(pair[0]));
                let odd = _mm_castps_si128(_mm256_cvtpd_ps(pair[1]));
                _mm_storeu_si128(to.cast(), _mm_blend_epi16::<0b1010_1010>(_mm_srli_epi32::<16>(even), odd));
            }
        }
    }
}

registers! {
    Avx512, width 8, columns 4, direct 4, register __m512d,
    splat _mm512_set1_pd, load _mm512_load_pd _mm512_loadu_pd, store _mm512_store_pd _mm512_storeu_pd,
    add _mm512_add_pd, sub _mm512_sub_pd, mul _mm512_mul_pd, fma _mm512_fmadd_pd, max _mm512_max_pd,
    and _mm512_and_pd, or _mm512_or_pd,
    native {
        #[inline(always)]
        fn all_below(value: __m512d, limit: f64) -> bool {
            // SAFETY: as in `splat`.
            unsafe { _mm512_cmp_pd_mask::<_CMP_LT_OQ>(value, _mm512_set1_pd(limit)) == 0xff }
        }

        #[inline(always)]
        unsafe fn load_f32(from: *const u8) -> __m512d {
            // SAFETY: the caller's: eight elements of four bytes.
            unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> __m512d {
            // SAFETY: the caller's: eight elements of two bytes.
            unsafe { _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> __m512d {
            // SAFETY: the caller's: eight elements of two bytes.
            unsafe {
                let upper = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())));
                _mm512_cvtps_pd(_mm256_castsi256_ps(upper))
            }
        }

        #[inline(always)]
        unsafe fn load_bf16_pair(from: *const u8) -> [__m512d; 2] {
            // SAFETY: the caller's: sixteen elements of two bytes.
            unsafe {
                let both = _mm256_loadu_si256(from.cast());
                let even = _mm256_slli_epi32::<16>(both);
                let odd = _mm256_and_si256(both, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
                [_mm512_cvtps_pd(_mm256_castsi256_ps(even)), _mm512_cvtps_pd(_mm256_castsi256_ps(odd))]
            }
        }

        #[inline(always)]
        unsafe fn store_f32(value: __m512d, to: *mut u8) {
            // SAFETY: the caller's: eight elements of four bytes.
            unsafe { _mm256_storeu_ps(to.cast(), _mm512_cvtpd_ps(value)) }
        }

        #[inline(always)]
        unsafe fn store_f16(value: __m512d, to: *mut u8) {
            // SAFETY: the caller's: eight elements of two bytes.
            unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_cvtpd_ps(value))) }
        }

        #[inline(always)]
        unsafe fn store_bf16(value: __m512d, to: *mut u8) {
            // SAFETY: the caller's: eight elements of two bytes.
            unsafe {
                let upper = _mm256_srli_epi32::<16>(_mm256_castps_si256(_mm512_cvtpd_ps(value)));
                _mm_storeu_si128(to.cast(), _mm256_cvtepi32_epi16(upper));
            }
        }

        #[inline(always)]
        unsafe fn store_bf16_pair(pair: [__m512d; 2], to: *mut u8) {
            // SAFETY: the caller's: sixteen elements of two bytes.
            unsafe {
                let even = _mm256_castps_si256(_mm512_cvtpd_ps(pair[0]));
                let odd = _mm256_castps_si256(_mm512_cvtpd_ps(pair[1]));
                _mm256_storeu_si256(to.cast(), _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd));
            }
        }
    }
}
