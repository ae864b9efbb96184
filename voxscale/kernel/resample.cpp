// Trilinear interpolation on a grid whose axes are those of the volume, with the bits of torch's grid_sample.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "wide.h"

namespace {

struct Axis {  // for each point of the grid the voxel before it, and the shares of that voxel and of the next
    std::vector<int32_t> before;
    std::vector<float> near, far;

    // Coordinates from -1 to 1, the centres of the outermost voxels; what lies beyond takes their value.
    Axis(const float* coordinates, int64_t points, int64_t voxels) : before(points), near(points), far(points) {
        const float last = static_cast<float>(voxels - 1);
        for (int64_t i = 0; i < points; ++i) {
            float at = ((coordinates[i] + 1) / 2) * last;
            at = at > 0 ? (at < last ? at : last) : 0;
            float floor = std::floor(at);
            if (floor == last && voxels > 1) floor -= 1;  // all of the share is the next one's
            before[i] = static_cast<int32_t>(floor);
            near[i] = floor + 1 - at;
            far[i] = at - floor;
        }
    }
};

// One row of the grid: `rows` are those of the volume before and after it along z and y.
WIDE void interpolate(const float* const* rows, const float* shares, const int32_t* __restrict before,
                      const float* __restrict near, const float* __restrict far, float* __restrict out, int64_t count) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    const float y0 = shares[0], y1 = shares[1], z0 = shares[2], z1 = shares[3];
    for (int64_t i = 0; i < count; ++i) {
        const int32_t k = before[i];
        const float n = near[i], f = far[i];
        float sum = a[k] * (n * y0 * z0);
        sum += a[k + 1] * (f * y0 * z0);
        sum += b[k] * (n * y1 * z0);
        sum += b[k + 1] * (f * y1 * z0);
        sum += c[k] * (n * y0 * z1);
        sum += c[k + 1] * (f * y0 * z1);
        sum += d[k] * (n * y1 * z1);
        sum += d[k + 1] * (f * y1 * z1);
        out[i] = sum;
    }
}

// scale * value + offset, held within 0 and 1; what is no number stays none. By bits, as compilers leave choices between
// floats to branches: of numbers that are not negative, the larger has the larger bits.
WIDE void bound(float scale, float offset, float* __restrict out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const float value = scale * out[i] + offset;
        int32_t bits;
        std::memcpy(&bits, &value, 4);
        const uint32_t none = (bits & 0x7fffffff) > 0x7f800000 ? ~0u : 0u;
        int32_t kept = bits < 0 ? 0 : bits;
        kept = kept > 0x3f800000 ? 0x3f800000 : kept;
        const uint32_t all = (static_cast<uint32_t>(bits) & none) | (static_cast<uint32_t>(kept) & ~none);
        std::memcpy(out + i, &all, 4);
    }
}

}  // namespace

// One volume of `size` voxels, each edge 2 or more, at the points of a grid of `points`; values are scaled by two numbers
// and bounded, unless `scale` is null.
extern "C" void sample_grid(const float* volume, const int64_t* size, const float* z, const float* y, const float* x,
                            const int64_t* points, const float* scale, float* out) {
    const Axis along_z(z, points[0], size[0]), along_y(y, points[1], size[1]), along_x(x, points[2], size[2]);
    const int64_t width = size[2], slice = size[1] * width;
    for (int64_t i = 0; i < points[0]; ++i)
        for (int64_t j = 0; j < points[1]; ++j, out += points[2]) {
            const float* first = volume + along_z.before[i] * slice + along_y.before[j] * width;
            const float* rows[] = {first, first + width, first + slice, first + slice + width};
            const float shares[] = {along_y.near[j], along_y.far[j], along_z.near[i], along_z.far[i]};
            interpolate(rows, shares, along_x.before.data(), along_x.near.data(), along_x.far.data(), out, points[2]);
            if (scale) bound(scale[0], scale[1], out, points[2]);  // while the row is in the cache
        }
}
