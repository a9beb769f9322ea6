/* The kernels as plain C, one function each, for tests on machines without a device: `arguments` point to the parameters
 * in their order, as a launch on a device takes them. */

#include "kernels.cu"

#define AT(type, index) (*(type *)arguments[index])

typedef const struct Input *Inputs;
typedef const struct Piece *Pieces;

#define LAUNCH(name, ...)                                                                                              \
    void host_##name(u32 width, u32 height, void **arguments) {                                                        \
        for (u32 y = 0; y < height; ++y)                                                                               \
            for (u32 x = 0; x < width; ++x) {                                                                          \
                const struct Place place = {x, y, height};                                                             \
                name(place, __VA_ARGS__);                                                                              \
            }                                                                                                          \
    }

LAUNCH(thalweg_gram, AT(Inputs, 0), AT(Pieces, 1), AT(u32, 2), AT(u32, 3), AT(u32, 4), AT(u32, 5), AT(double *, 6))
LAUNCH(thalweg_scan, AT(Inputs, 0), AT(Pieces, 1), AT(u32, 2), AT(u32 *, 3))
LAUNCH(thalweg_combine, AT(Inputs, 0), AT(Pieces, 1), AT(u32, 2), AT(const double *, 3), AT(u32, 4), AT(void *, 5),
       AT(u64 *, 6))
LAUNCH(thalweg_product, AT(const float *, 0), AT(const float *, 1), AT(u32, 2), AT(u32, 3), AT(u32, 4), AT(u32, 5),
       AT(u32, 6), AT(u32, 7), AT(float *, 8), AT(u32, 9))
LAUNCH(thalweg_gather, AT(const void *, 0), AT(void *, 1), AT(u32, 2), AT(u32, 3), AT(u32, 4), AT(const u32 *, 5))
