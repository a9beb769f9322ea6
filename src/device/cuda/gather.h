/* Reordered columns: elements moved by an index along the last axis, some with their signs flipped. */
#ifndef THALWEG_GATHER_H
#define THALWEG_GATHER_H

#include "element.h"

/* The place of a column whose elements change their signs has this bit too. */
#define FLIPPED 0x80000000u

/* into[row * columns + column] = from[row * columns + place]; `places` has one for each column.
 *
 * Grid: runs of BLOCK columns x any number of blocks that share the rows. */
KERNEL thalweg_gather(HOST_PLACE const void *from, void *into, u32 rows, u32 columns, u32 dtype, const u32 *places) {
    const u64 sign = 1ull << (8 * size_of(dtype) - 1);
    THREADS {
        const u32 column = BLOCK_X * BLOCK + thread;
        if (column < columns) {
            const u32 source = places[column] & ~FLIPPED;
            const u64 flip = places[column] & FLIPPED ? sign : 0;
            for (u32 row = BLOCK_Y; row < rows; row += GRID_Y) {
                const u64 begin = (u64)row * columns;
                store(into, dtype, begin + column, load(from, dtype, begin + source) ^ flip);
            }
        }
    }
}

#endif
