/* One element: widening to f64 and the single rounding back, as in src/kernel/element.rs. */
#ifndef THALWEG_ELEMENT_H
#define THALWEG_ELEMENT_H

#include "portable.h"

/* Element types, by the numbers that src/device/layout.rs gives them. */
enum { F64 = 0, F32 = 1, F16 = 2, BF16 = 3, F8_E4M3 = 4, F8_E5M2 = 5 };

#define EXPONENT 0x7ff0000000000000ull
#define SIGN 0x8000000000000000ull
#define QUIET_NAN 0x7ff8000000000000ull

FUNCTION u32 size_of(u32 dtype) {
    return dtype == F64 ? 8 : dtype == F32 ? 4 : dtype <= BF16 ? 2 : 1;
}

/* The bits of element `at`; the element must be aligned to its size. */
FUNCTION u64 load(const void *elements, u32 dtype, u64 at) {
    switch (dtype) {
    case F64:
        return ((const u64 *)elements)[at];
    case F32:
        return ((const u32 *)elements)[at];
    case F16:
    case BF16:
        return ((const u16 *)elements)[at];
    default:
        return ((const u8 *)elements)[at];
    }
}

FUNCTION void store(void *elements, u32 dtype, u64 at, u64 bits) {
    switch (dtype) {
    case F64:
        ((u64 *)elements)[at] = bits;
        break;
    case F32:
        ((u32 *)elements)[at] = (u32)bits;
        break;
    case F16:
    case BF16:
        ((u16 *)elements)[at] = (u16)bits;
        break;
    default:
        ((u8 *)elements)[at] = (u8)bits;
    }
}

FUNCTION int is_finite(double value) {
    return (BITS(value) & EXPONENT) != EXPONENT;
}

FUNCTION int is_nan(double value) {
    return (BITS(value) & ~SIGN) > EXPONENT;
}

FUNCTION double widen_f16(u32 bits) {
    const u32 smallest_normal = 113u << 23;
    u32 magnitude = (bits & 0x7fffu) << 13;
    u32 sign = (bits & 0x8000u) << 16;
    u32 wide = magnitude + (112u << 23);
    if (magnitude < 1u << 23)
        /* A subnormal's mantissa under the exponent of the smallest normal is that normal too big. */
        wide = BITS_F32(SUB_F32(FROM_BITS_F32(magnitude + smallest_normal), FROM_BITS_F32(smallest_normal)));
    else if (magnitude >= 0x1fu << 23)
        wide = magnitude | 0xffu << 23;
    return (double)FROM_BITS_F32(wide | sign);
}

/* The value of an element's bits, exactly. */
FUNCTION double widen(u64 bits, u32 dtype) {
    u32 low = (u32)bits;
    switch (dtype) {
    case F64:
        return FROM_BITS(bits);
    case F32:
        return (double)FROM_BITS_F32(low);
    case F16:
        return widen_f16(low);
    case BF16:
        return (double)FROM_BITS_F32(low << 16);
    case F8_E5M2:
        return widen_f16(low << 8);
    default:
        /* The code moved into a binary16 is the value over 2^8, the difference of the biases. */
        if ((low & 0x7fu) == 0x7fu)
            return FROM_BITS(QUIET_NAN);
        return MUL(widen_f16((low & 0x7fu) << 7 | (low & 0x80u) << 8), 256.0);
    }
}

/* The code of `value` in a format of `bits` bits, `mantissa` of them stored mantissa, the smallest normal number
 * 2^`smallest`, magnitudes cut at `cap`; see `encode` in src/kernel/element.rs for why this rounds once. */
FUNCTION u64 encode(double value, u32 mantissa, int smallest, u32 bits, double cap, u64 nan) {
    u64 least = (u64)(smallest + 1023) << 52;
    double magnitude = FROM_BITS(BITS(value) & ~SIGN);
    magnitude = magnitude < cap ? magnitude : cap;
    u64 binade = BITS(magnitude) & EXPONENT;
    binade = binade > least ? binade : least;
    double shifter = MUL(FROM_BITS(binade), (double)(1ull << (52 - mantissa)));
    u64 steps = BITS(ADD(magnitude, shifter)) - BITS(shifter);
    u64 code = steps + ((binade - least) >> (52 - mantissa));
    return is_nan(value) ? nan : code | BITS(value) >> 63 << (bits - 1);
}

/* The bits of the nearest representable value, ties to even; a NaN becomes the positive quiet NaN. */
FUNCTION u64 narrow(double value, u32 dtype) {
    switch (dtype) {
    case F64:
        return is_nan(value) ? QUIET_NAN : BITS(value);
    case F32:
        return is_nan(value) ? 0x7fc00000ull : BITS_F32(TO_F32(value));
    case F16:
        return encode(value, 10, -14, 16, 65536.0, 0x7e00);
    case BF16:
        return encode(value, 7, -126, 16, 0x1p128, 0x7fc0);
    case F8_E5M2:
        return encode(value, 2, -14, 8, 65536.0, 0x7e);
    default:
        return encode(value, 3, -6, 8, 480.0, 0x7f);
    }
}

#endif
