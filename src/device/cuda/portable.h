/* One source for two compilers: CUDA C on a device, plain C or C++ on the host, where tests hold it against the Rust
 * kernels bit for bit.
 *
 * A kernel is a sequence of steps. THREADS runs one step in every thread of the block, BARRIER ends it. On the host a
 * step is a loop over the threads, so whatever a thread keeps from one step to the next is declared with KEEP and found
 * at [SLOT]; everything outside of THREADS is the same for all threads of a block.
 *
 * Arithmetic is spelt out: ADD, MUL and the others round once to nearest even and are never contracted. */
#ifndef THALWEG_PORTABLE_H
#define THALWEG_PORTABLE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* Threads of a block, in every kernel. */
#define BLOCK 256

#ifdef __CUDACC_RTC__

#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK)
#define FUNCTION static __device__ __forceinline__
#define SHARED __shared__
#define ALIGNED __align__(16)
#define UNROLL _Pragma("unroll")
#define THREADS for (u32 thread = threadIdx.x, run = 1; run; run = 0)
#define BARRIER __syncthreads()
#define KEEP(type, name) type name[1]
#define SLOT 0
#define BLOCK_X blockIdx.x
#define BLOCK_Y blockIdx.y
#define GRID_Y gridDim.y
#define ADD(a, b) __dadd_rn(a, b)
#define SUB(a, b) __dsub_rn(a, b)
#define MUL(a, b) __dmul_rn(a, b)
#define DIV(a, b) __ddiv_rn(a, b)
#define FMA(a, b, c) __fma_rn(a, b, c)
#define SUB_F32(a, b) __fsub_rn(a, b)
#define FMA_F32(a, b, c) __fmaf_rn(a, b, c)
#define TO_F32(a) __double2float_rn(a)
#define BITS(a) ((u64)__double_as_longlong(a))
#define FROM_BITS(a) __longlong_as_double((long long)(a))
#define BITS_F32(a) __float_as_uint(a)
#define FROM_BITS_F32(a) __uint_as_float(a)
#define COUNT(to, by) atomicAdd(to, by)
#define LOWER(to, by) atomicMin(to, by)

#else

#include <math.h>
#include <string.h>

/* Where the loop over the grid stands. */
struct Place {
    u32 x, y, height;
};

/* A kernel is an ordinary function of the place and its parameters; see host.c for the loop over the grid. */
#define HOST_PLACE const struct Place place,
#define KERNEL static void
#define FUNCTION static inline
#define SHARED
#define ALIGNED
#define UNROLL
#define THREADS for (u32 thread = 0; thread < BLOCK; ++thread)
#define BARRIER ((void)0)
#define KEEP(type, name) type name[BLOCK]
#define SLOT thread
#define BLOCK_X place.x
#define BLOCK_Y place.y
#define GRID_Y place.height
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define MUL(a, b) ((a) * (b))
#define DIV(a, b) ((a) / (b))
#define FMA(a, b, c) fma(a, b, c)
#define SUB_F32(a, b) ((a) - (b))
#define FMA_F32(a, b, c) fmaf(a, b, c)
#define TO_F32(a) ((float)(a))
#define BITS(a) bits_of(a)
#define FROM_BITS(a) from_bits(a)
#define BITS_F32(a) bits_of_f32(a)
#define FROM_BITS_F32(a) from_bits_f32(a)
#define COUNT(to, by) (*(to) += (by))
#define LOWER(to, by) (*(to) = *(to) < (by) ? *(to) : (by))

static inline u64 bits_of(double value) {
    u64 bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double from_bits(u64 bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline u32 bits_of_f32(float value) {
    u32 bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float from_bits_f32(u32 bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif

#ifndef HOST_PLACE
#define HOST_PLACE
#endif

#endif
