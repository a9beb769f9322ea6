/* Products of matrices in f32, for the cost matrices of alignment.
 *
 * An entry is summed in this order and no other, wherever its factors are cut at multiples of DEPTH: the terms of DEPTH
 * columns of `left` are added up from zero, each with one fused multiply-add; then that sum times `scale` is added to the
 * entry with one fused multiply-add. */
#ifndef THALWEG_PRODUCT_H
#define THALWEG_PRODUCT_H

#include "portable.h"

/* Terms that are added up before they are added to the result; DEPTH in src/device/multiplication.rs. */
#define DEPTH 256
/* Rows and columns of the result that a block of threads computes; SQUARE in src/device/multiplication.rs. */
#define SQUARE 128
/* Rows and columns of it that a thread computes, in groups of QUAD that lie behind one another. */
#define SPOT 8
#define QUAD 4
/* Threads along each side of a square. */
#define EDGE (SQUARE / SPOT)
/* Terms whose factors are in shared memory at a time, and floats of a row of them: more than SQUARE, so that threads that
 * write one below the other write to different banks. */
#define STEP 16
#define PITCH (SQUARE + QUAD)

struct Spot {
    float at[SPOT][SPOT];
};

/* The place in a square of the row or column `at` of a thread's spot. */
FUNCTION u32 within(u32 edge, u32 at) {
    return at / QUAD * (EDGE * QUAD) + edge * QUAD + at % QUAD;
}

FUNCTION void clear(struct Spot *spot) {
    UNROLL for (u32 i = 0; i < SPOT; ++i)
        UNROLL for (u32 j = 0; j < SPOT; ++j)
            spot->at[i][j] = 0.0f;
}

/* Brings STEP terms of SQUARE rows from `begin` on into shared memory, zero beyond `rows` and `depth`. The elements of
 * a row lie behind one another, or where `across` those of a term. */
FUNCTION void bring(float (*into)[PITCH], const float *from, u32 rows, u32 depth, u32 begin, u32 first, int across,
                    u32 thread) {
    UNROLL for (u32 part = 0; part < SQUARE * STEP / BLOCK; ++part) {
        const u32 at = part * BLOCK + thread;
        const u32 k = across ? at / SQUARE : at % STEP, row = across ? at % SQUARE : at / STEP;
        float value = 0.0f;
        if (begin + row < rows && first + k < depth)
            value = across ? from[(u64)(first + k) * rows + begin + row] : from[(u64)(begin + row) * depth + first + k];
        into[k][row] = value;
    }
}

/* Adds `steps` terms to a thread's sums. */
FUNCTION void multiply(float (*left)[PITCH], float (*right)[PITCH], u32 steps, u32 thread, struct Spot *spot) {
    UNROLL for (u32 k = 0; k < steps; ++k) {
        float x[SPOT], y[SPOT];
        UNROLL for (u32 i = 0; i < SPOT; ++i) {
            x[i] = left[k][within(thread / EDGE, i)];
            y[i] = right[k][within(thread % EDGE, i)];
        }
        UNROLL for (u32 i = 0; i < SPOT; ++i)
            UNROLL for (u32 j = 0; j < SPOT; ++j)
                spot->at[i][j] = FMA_F32(x[i], y[j], spot->at[i][j]);
    }
}

/* sums[row * stride + column] = scale * left * right, added to what is there unless `fresh`; `left` has `rows` rows,
 * `right` `columns` columns. `turned`: 1 when the elements of a column of `left` lie behind one another, plus 2 when those
 * of a column of `right` do. `scale` are the bits of an f32.
 *
 * Grid: squares of columns x squares of rows. */
KERNEL thalweg_product(HOST_PLACE const float *left, const float *right, u32 rows, u32 columns, u32 depth, u32 turned,
                       u32 scale, u32 fresh, float *sums, u32 stride) {
    SHARED ALIGNED float x[STEP][PITCH];
    SHARED ALIGNED float y[STEP][PITCH];
    KEEP(struct Spot, spot);
    const u32 row = BLOCK_Y * SQUARE, column = BLOCK_X * SQUARE;
    for (u32 begin = 0; begin < depth; begin += DEPTH) {
        const u32 end = depth - begin < DEPTH ? depth : begin + DEPTH;
        for (u32 first = begin; first < end; first += STEP) {
            BARRIER;
            THREADS {
                if (first == begin)
                    clear(&spot[SLOT]);
                bring(x, left, rows, depth, row, first, (turned & 1) != 0, thread);
                bring(y, right, columns, depth, column, first, (turned & 2) == 0, thread);
            }
            BARRIER;
            THREADS {
                /* The usual number of steps is known to the compiler. */
                if (end - first >= STEP)
                    multiply(x, y, STEP, thread, &spot[SLOT]);
                else
                    multiply(x, y, end - first, thread, &spot[SLOT]);
            }
        }
        THREADS {
            UNROLL for (u32 i = 0; i < SPOT; ++i)
                UNROLL for (u32 j = 0; j < SPOT; ++j) {
                    const u32 r = row + within(thread / EDGE, i), c = column + within(thread % EDGE, j);
                    if (r < rows && c < columns) {
                        float *sum = sums + (u64)r * stride + c;
                        const float before = fresh && begin == 0 ? 0.0f : *sum;
                        *sum = FMA_F32(FROM_BITS_F32(scale), spot[SLOT].at[i][j], before);
                    }
                }
        }
    }
}

#endif
