/* The kernels that the device backend launches: Gram sums, the search for non-finite elements, weighted sums; in product.h
 * products of matrices, in gather.h reordered columns.
 *
 * Every result has the bits of src/kernel: element k of a chunk goes to lane k mod 16, the lanes are added in one fixed
 * tree; a fused multiply-add is used only where the product is exact in f64. Pieces are runs of at most a chunk. */

#include "element.h"
#include "gather.h"
#include "product.h"

/* One input: where its elements begin, and their type. */
struct Input {
    const void *elements;
    u32 dtype;
    u32 unused;
};

/* A run of elements that lies behind one another in all inputs. */
struct Piece {
    u32 start;
    u32 len;
    /* The input whose bits are copied instead of a weighted sum. */
    u32 copy;
    u32 unused;
};

#define NONE 0xffffffffu
#define LANES 16
/* Elements that are widened at a time, and inputs on each side of a block of pairs. */
#define TILE 512
#define SIDE 4

/* Element k of an input as it enters the products. */
FUNCTION double prepared(const struct Input *inputs, u32 input, u64 at, u32 center, u32 skip) {
    double value = widen(load(inputs[input].elements, inputs[input].dtype, at), inputs[input].dtype);
    if (skip && !is_finite(value))
        value = 0.0;
    if (center != NONE && center != input) {
        double base = widen(load(inputs[center].elements, inputs[center].dtype, at), inputs[center].dtype);
        if (skip && !is_finite(base))
            base = 0.0;
        value = SUB(value, base);
    }
    return value;
}

/* sums[piece * pairs + pair]: the inner products of the pairs i <= j, row by row of the upper triangle.
 *
 * Grid: pieces x blocks of SIDE x SIDE pairs. A thread owns one lane of one pair. `exact` says that every product is
 * exact in f64. */
KERNEL thalweg_gram(HOST_PLACE const struct Input *inputs, const struct Piece *pieces, u32 count, u32 center, u32 skip,
                    u32 exact, double *sums) {
    SHARED double left[SIDE][TILE];
    SHARED double right[SIDE][TILE];
    SHARED double lanes[SIDE * SIDE][LANES];
    KEEP(double, sum);
    const struct Piece piece = pieces[BLOCK_X];
    const u32 tiles = (count + SIDE - 1) / SIDE;
    u32 row = 0, column = BLOCK_Y;
    while (column >= tiles - row) {
        column -= tiles - row;
        row += 1;
    }
    column += row;
    for (u32 start = 0; start < piece.len; start += TILE) {
        const u32 len = piece.len - start < TILE ? piece.len - start : TILE;
        BARRIER;
        THREADS for (u32 at = thread; at < 2 * SIDE * TILE; at += BLOCK) {
            const u32 side = at / (SIDE * TILE), slot = at / TILE % SIDE, k = at % TILE;
            const u32 input = (side ? column : row) * SIDE + slot;
            double value = 0.0;
            if (k < len && input < count && !(side && row == column))
                value = prepared(inputs, input, (u64)piece.start + start + k, center, skip);
            (side ? right : left)[slot][k] = value;
        }
        BARRIER;
        THREADS {
            const u32 lane = thread % LANES, i = thread / LANES / SIDE, j = thread / LANES % SIDE;
            const double *x = left[i], *y = (row == column ? left : right)[j];
            const u32 whole = (len + LANES - 1) / LANES * LANES;
            double total = start > 0 ? sum[SLOT] : 0.0;
            if (row != column || i <= j) {
                if (exact)
                    for (u32 k = lane; k < whole; k += LANES)
                        total = FMA(x[k], y[k], total);
                else
                    for (u32 k = lane; k < whole; k += LANES)
                        total = ADD(total, MUL(x[k], y[k]));
            }
            sum[SLOT] = total;
        }
    }
    THREADS lanes[thread / LANES][thread % LANES] = piece.len > 0 ? sum[SLOT] : 0.0;
    BARRIER;
    THREADS {
        const u32 i = row * SIDE + thread / SIDE, j = column * SIDE + thread % SIDE;
        if (thread < SIDE * SIDE && i <= j && j < count) {
            double *lane = lanes[thread];
            for (u32 half = LANES / 2; half > 0; half /= 2)
                for (u32 l = 0; l < half; ++l)
                    lane[l] = ADD(lane[l], lane[l + half]);
            const u64 pairs = (u64)count * (count + 1) / 2, pair = (u64)i * count - (u64)i * (i + 1) / 2 + j;
            /* The payload of a NaN depends on the order of operands. */
            sums[BLOCK_X * pairs + pair] = is_nan(lane[0]) ? FROM_BITS(QUIET_NAN) : lane[0];
        }
    }
}

/* first[piece * count + input]: lowered to the place in the piece of the first element that is NaN or infinite.
 *
 * Grid: pieces x inputs. */
KERNEL thalweg_scan(HOST_PLACE const struct Input *inputs, const struct Piece *pieces, u32 count, u32 *first) {
    const struct Piece piece = pieces[BLOCK_X];
    const struct Input input = inputs[BLOCK_Y];
    THREADS for (u32 k = thread; k < piece.len; k += BLOCK) {
        if (!is_finite(widen(load(input.elements, input.dtype, (u64)piece.start + k), input.dtype))) {
            LOWER(first + (u64)BLOCK_X * count + BLOCK_Y, k);
            break;
        }
    }
}

/* out[k]: the weighted sum of element k in the order of the inputs, over the divisor, rounded once to `dtype`; inputs of
 * weight zero take no part. weights[piece * (count + 1) + input], the last of a row the divisor. `overflows` grows by the
 * finite quotients that became infinite or NaN.
 *
 * Grid: pieces x any number of blocks that share a piece. */
KERNEL thalweg_combine(HOST_PLACE const struct Input *inputs, const struct Piece *pieces, u32 count,
                       const double *weights, u32 dtype, void *out, u64 *overflows) {
    const struct Piece piece = pieces[BLOCK_X];
    const double *weight = weights + (u64)BLOCK_X * (count + 1);
    THREADS {
        u64 overflowed = 0;
        for (u32 k = BLOCK_Y * BLOCK + thread; k < piece.len; k += GRID_Y * BLOCK) {
            const u64 at = (u64)piece.start + k;
            if (piece.copy != NONE) {
                store(out, dtype, at, load(inputs[piece.copy].elements, dtype, at));
                continue;
            }
            double sum = 0.0;
            int fresh = 1;
            for (u32 i = 0; i < count; ++i) {
                if (weight[i] == 0.0)
                    continue;
                const double term = MUL(weight[i], widen(load(inputs[i].elements, inputs[i].dtype, at), inputs[i].dtype));
                /* The first term is not added to zero, so that a negative zero survives. */
                sum = fresh ? term : ADD(sum, term);
                fresh = 0;
            }
            if (weight[count] != 1.0)
                sum = DIV(sum, weight[count]);
            const u64 bits = narrow(sum, dtype);
            store(out, dtype, at, bits);
            overflowed += is_finite(sum) && !is_finite(widen(bits, dtype));
        }
        if (overflowed)
            COUNT(overflows, overflowed);
    }
}
