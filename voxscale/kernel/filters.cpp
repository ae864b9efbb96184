// Filters of scans as scipy.ndimage computes them, in the same order of operations and so bit by bit the same.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "wide.h"

namespace {

constexpr int64_t COLUMNS = 128;
constexpr int64_t BLOCK = 1024;  // numbers of a row that are worked on at once: all that is needed stays in the cache

int64_t beyond(int64_t place, int64_t length, int reflect) {
    if (!reflect) return std::clamp<int64_t>(place, 0, length - 1);
    const int64_t period = 2 * length;
    place = ((place % period) + period) % period;
    return place < length ? place : period - 1 - place;
}

template <typename From> struct Clip {
    double low, high;
    bool on;
    inline double operator()(From value) const {
        const double wide = static_cast<double>(value);
        return on ? std::min(std::max(wide, low), high) : wide;
    }
};

template <typename From, typename To>
WIDE void add_row(double* total, const From* in, const From* out, To* kept, int64_t count, double width, Clip<From> clip) {
    for (int64_t i = 0; i < count; ++i) total[i] += clip(in[i]) - clip(out[i]);
    if (kept)
        for (int64_t i = 0; i < count; ++i) kept[i] = static_cast<To>(total[i] / width);
}

template <typename To>
void add_plane(double* total, const float* in, const float* out, To* kept, int64_t count, double width,
               Clip<float> clip) {
    if (out) return add_row<float, To>(total, in, out, kept, count, width, clip);
    for (int64_t i = 0; i < count; ++i) total[i] += clip(in[i]);
    if (kept)
        for (int64_t i = 0; i < count; ++i) kept[i] = static_cast<To>(total[i] / width);
}

// Running means along the middle one of three axes, kept at every so many places.
template <typename From, typename To>
void means_rows(const From* in, To* out, int64_t outer, int64_t length, int64_t inner, int64_t width, int64_t step,
                int reflect, Clip<From> clip) {
    const int64_t kept = (length + step - 1) / step, before = width / 2;
    double total[BLOCK];
    for (int64_t o = 0; o < outer; ++o) {
        for (int64_t start = 0; start < inner; start += BLOCK) {
            const int64_t count = std::min(BLOCK, inner - start);
            const From* from = in + o * length * inner + start;
            To* to = out + o * kept * inner + start;
            std::fill(total, total + count, 0.0);
            for (int64_t k = 0; k < width; ++k) {
                const From* row = from + beyond(k - before, length, reflect) * inner;
                for (int64_t i = 0; i < count; ++i) total[i] += clip(row[i]);
            }
            for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(total[i] / static_cast<double>(width));
            for (int64_t k = 1; k < length; ++k) {
                const From* next = from + beyond(k - before + width - 1, length, reflect) * inner;
                const From* last = from + beyond(k - before - 1, length, reflect) * inner;
                To* row = k % step ? nullptr : to + k / step * inner;
                add_row<From, To>(total, next, last, row, count, static_cast<double>(width), clip);
            }
        }
    }
}

template <typename From, typename To>
void means_lines(const From* in, To* out, int64_t lines, int64_t length, int64_t width, int64_t step, int reflect,
                 Clip<From> clip) {
    const int64_t kept = (length + step - 1) / step, before = width / 2;
    std::vector<double> line(length + width);
    for (int64_t l = 0; l < lines; ++l) {
        const From* from = in + l * length;
        To* to = out + l * kept;
        for (int64_t k = 0; k < before; ++k) line[k] = clip(from[beyond(k - before, length, reflect)]);
        for (int64_t k = 0; k < length; ++k) line[before + k] = clip(from[k]);
        for (int64_t k = before + length; k < length + width; ++k)
            line[k] = clip(from[beyond(k - before, length, reflect)]);
        double total = 0.0;
        for (int64_t k = 0; k < width; ++k) total += line[k];
        to[0] = static_cast<To>(total / static_cast<double>(width));
        for (int64_t k = 1; k < length; ++k) {
            total += line[k + width - 1] - line[k - 1];
            if (k % step == 0) to[k / step] = static_cast<To>(total / static_cast<double>(width));
        }
    }
}

template <typename From, typename To>
void means(const From* in, To* out, const int64_t* sides, int64_t width, int64_t step, int reflect, Clip<From> clip) {
    if (sides[2] == 1)
        means_lines(in, out, sides[0], sides[1], width, step, reflect, clip);
    else
        means_rows(in, out, sides[0], sides[1], sides[2], width, step, reflect, clip);
}

template <typename T>
WIDE void scale_row(const T* in, double* out, int64_t count, double first, double second) {
    for (int64_t i = 0; i < count; ++i) out[i] = (static_cast<double>(in[i]) * first) * second;
}

template <typename T>
void interpolate(const T* in, float* out, const int64_t* from, const int64_t* to, const int64_t* places,
                 const double* weights) {
    const int64_t *pz = places, *py = pz + 2 * to[0], *px = py + 2 * to[1];
    const double *wz = weights, *wy = wz + 2 * to[0], *wx = wy + 2 * to[1];
    std::vector<double> rows(4 * from[2]), sums(to[2]);
    for (int64_t z = 0; z < to[0]; ++z) {
        for (int64_t y = 0; y < to[1]; ++y) {
            std::fill(sums.begin(), sums.end(), 0.0);
            for (int side = 0; side < 4; ++side) {
                const double first = wz[2 * z + side / 2], second = wy[2 * y + side % 2];
                if (first == 0.0 || second == 0.0) continue;
                const T* row = in + (pz[2 * z + side / 2] * from[1] + py[2 * y + side % 2]) * from[2];
                scale_row(row, rows.data(), from[2], first, second);
                for (int64_t x = 0; x < to[2]; ++x) {
                    sums[x] += rows[px[2 * x]] * wx[2 * x];
                    sums[x] += rows[px[2 * x + 1]] * wx[2 * x + 1];
                }
            }
            float* row = out + (z * to[1] + y) * to[2];
            for (int64_t x = 0; x < to[2]; ++x) row[x] = static_cast<float>(sums[x]);
        }
    }
}

WIDE void add_pair(double* total, const double* one, const double* two, int64_t count, double weight) {
    for (int64_t i = 0; i < count; ++i) total[i] += (one[i] + two[i]) * weight;
}

template <typename T> void count_as(const T* data, int64_t size, int64_t* counts, int64_t shift) {
    const int64_t levels = int64_t{1} << (8 * sizeof(T));
    std::vector<int64_t> other(levels);  // equal neighbours would wait for each other in one table
    int64_t k = 0;
    for (; k + 1 < size; k += 2) {
        ++counts[data[k] + shift];
        ++other[data[k + 1] + shift];
    }
    if (k < size) ++counts[data[k] + shift];
    for (int64_t level = 0; level < levels; ++level) counts[level] += other[level];
}

}  // namespace

extern "C" {

// Voxels of each value of 8- or 16-bit integers, lowest first; counts are zero before.
void count_values(const void* data, int64_t size, int bytes, int is_signed, int64_t* counts) {
    if (bytes == 1 && is_signed) count_as(static_cast<const int8_t*>(data), size, counts, 128);
    if (bytes == 1 && !is_signed) count_as(static_cast<const uint8_t*>(data), size, counts, 0);
    if (bytes == 2 && is_signed) count_as(static_cast<const int16_t*>(data), size, counts, 32768);
    if (bytes == 2 && !is_signed) count_as(static_cast<const uint16_t*>(data), size, counts, 0);
}

// One step of running means along the first axis: a plane comes in, another may go, and the mean may be kept.
void add_planes(double* total, const float* in, const float* out, void* kept, int kept_wide, int64_t count,
                int64_t width, int clip, double low, double high) {
    const Clip<float> narrow{low, high, clip != 0};
    if (kept_wide)
        add_plane(total, in, out, static_cast<double*>(kept), count, static_cast<double>(width), narrow);
    else
        add_plane(total, in, out, static_cast<float*>(kept), count, static_cast<double>(width), narrow);
}

// Running means along the middle of three sides: float to float, float clipped to double, or double to double.
void running_means(const void* in, int in_wide, void* out, int out_wide, const int64_t* sides, int64_t width,
                   int64_t step, int reflect, int clip, double low, double high) {
    const Clip<float> narrow{low, high, clip != 0};
    const Clip<double> wide{low, high, clip != 0};
    if (in_wide)
        means(static_cast<const double*>(in), static_cast<double*>(out), sides, width, step, reflect, wide);
    else if (out_wide)
        means(static_cast<const float*>(in), static_cast<double*>(out), sides, width, step, reflect, narrow);
    else
        means(static_cast<const float*>(in), static_cast<float*>(out), sides, width, step, reflect, narrow);
}

// Linear interpolation on a grid along the axes: two places and weights for each index of each axis.
void interpolate_grid(const void* in, int wide, float* out, const int64_t* from, const int64_t* to,
                      const int64_t* places, const double* weights) {
    if (wide)
        interpolate(static_cast<const double*>(in), out, from, to, places, weights);
    else
        interpolate(static_cast<const float*>(in), out, from, to, places, weights);
}

// Symmetric filter along the middle of three sides, ends repeated; weights from the middle one outwards. Only the
// places from `first` up to `last` are filtered, all of them where there is nothing after the axis.
void correlate_even(const float* in, float* out, const int64_t* sides, const double* weights, int64_t reach,
                    int64_t first, int64_t last) {
    const int64_t length = sides[1], inner = sides[2];
    double total[COLUMNS];
    if (inner == 1) {
        std::vector<double> line(length + 2 * reach), sums(length);
        for (int64_t o = 0; o < sides[0]; ++o) {
            const float* from = in + o * length;
            for (int64_t k = 0; k < length + 2 * reach; ++k) line[k] = from[beyond(k - reach, length, 0)];
            for (int64_t k = 0; k < length; ++k) sums[k] = line[k + reach] * weights[0];
            for (int64_t j = reach; j > 0; --j)
                add_pair(sums.data(), line.data() + reach - j, line.data() + reach + j, length, weights[j]);
            for (int64_t k = 0; k < length; ++k) out[o * length + k] = static_cast<float>(sums[k]);
        }
        return;
    }
    // Columns that are near one another, as doubles: each is looked at as often as the filter is wide.
    std::vector<double> columns(length * COLUMNS);
    for (int64_t o = 0; o < sides[0]; ++o)
        for (int64_t start = 0; start < inner; start += COLUMNS) {
            const int64_t count = std::min(COLUMNS, inner - start);
            const float* from = in + o * length * inner + start;
            for (int64_t k = 0; k < length; ++k)
                for (int64_t i = 0; i < count; ++i) columns[k * COLUMNS + i] = static_cast<double>(from[k * inner + i]);
            for (int64_t k = first; k < last; ++k) {
                for (int64_t i = 0; i < count; ++i) total[i] = columns[k * COLUMNS + i] * weights[0];
                for (int64_t j = reach; j > 0; --j)
                    add_pair(total, columns.data() + beyond(k - j, length, 0) * COLUMNS,
                             columns.data() + beyond(k + j, length, 0) * COLUMNS, count, weights[j]);
                float* to = out + (o * (last - first) + k - first) * inner + start;
                for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(total[i]);
            }
        }
}

}  // extern "C"
