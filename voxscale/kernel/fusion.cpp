// Labels of one regular grid and the blend of two volumes by them, in one pass.
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "wide.h"

namespace {

// As torch.lerp: from the nearer end on, so that both ends are met exactly. Ends are picked by bits, without a branch.
WIDE void blend(const float* __restrict back, const float* __restrict front, const float* __restrict factor,
                const uint32_t* __restrict far, float* __restrict out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        uint32_t a, b;
        std::memcpy(&a, back + i, 4);
        std::memcpy(&b, front + i, 4);
        const uint32_t picked = (a & ~far[i]) | (b & far[i]);
        float base;
        std::memcpy(&base, &picked, 4);
        out[i] = base + factor[i] * (front[i] - back[i]);
    }
}

#if defined(__x86_64__)
// The same for whole eights on machines with AVX2; past the caches if `out`, which then must lie on 32 bytes, is so large
// that it would only sweep them.
template <bool PAST>
__attribute__((target("avx2"))) void blend_eights(const float* __restrict back, const float* __restrict front,
                                                  const float* __restrict factor, const uint32_t* __restrict far,
                                                  float* __restrict out, int64_t count) {
    for (int64_t i = 0; i < count; i += 8) {
        const __m256 a = _mm256_loadu_ps(back + i), b = _mm256_loadu_ps(front + i);
        const __m256 pick = _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(far + i)));
        const __m256 step = _mm256_mul_ps(_mm256_loadu_ps(factor + i), _mm256_sub_ps(b, a));
        const __m256 sum = _mm256_add_ps(_mm256_blendv_ps(a, b, pick), step);
        PAST ? _mm256_stream_ps(out + i, sum) : _mm256_storeu_ps(out + i, sum);
    }
}

constexpr int64_t LARGE = 1 << 20;  // voxels

using Blend = void (*)(const float*, const float*, const float*, const uint32_t*, float*, int64_t);

Blend chosen_blend(const float* out, const int64_t* size) {
    if (size[2] % 8 != 0 || !__builtin_cpu_supports("avx2")) return blend;
    const bool past = reinterpret_cast<uintptr_t>(out) % 32 == 0 && size[0] * size[1] * size[2] > LARGE;
    return past ? blend_eights<true> : blend_eights<false>;
}
#endif

// What a row of voxels gets, by the row of cells that it lies in: each is looked up when it is first met.
class Rows {
  public:
    Rows(const uint8_t* table, const int64_t* x, int64_t width, int64_t levels) : table(table), x(x), width(width) {
        for (int64_t k = 0; k <= levels; ++k) {
            const float weight = static_cast<float>(k) / static_cast<float>(levels);
            far_of[k] = weight < 0.5f ? 0u : ~0u;
            factor_of[k] = weight < 0.5f ? weight : weight - 1.0f;
        }
    }

    int64_t at(int64_t cell) {  // where the row begins that starts at this cell
        if (static_cast<size_t>(cell) >= known.size()) known.resize(2 * cell + 1, -1);
        if (known[cell] >= 0) return known[cell];
        const int64_t begin = static_cast<int64_t>(classes.size());
        classes.resize(begin + width), far.resize(begin + width), factor.resize(begin + width);
        for (int64_t k = 0; k < width; ++k) {
            const uint8_t one = classes[begin + k] = table[cell + x[k]];
            far[begin + k] = far_of[one];
            factor[begin + k] = factor_of[one];
        }
        return known[cell] = begin;
    }

    std::vector<float> factor;
    std::vector<uint32_t> far;
    std::vector<uint8_t> classes;

  private:
    const uint8_t* table;
    const int64_t* x;
    int64_t width;
    float factor_of[256];
    uint32_t far_of[256];
    std::vector<int64_t> known;
};

}  // namespace

extern "C" void fuse_grid(const float* back, const float* front, float* out, uint8_t* label, const uint8_t* table,
                          const int64_t* z, const int64_t* y, const int64_t* x, const int64_t* size, int64_t levels) {
    const int64_t width = size[2];
    Rows rows(table, x, width, levels);
#if defined(__x86_64__)
    const auto by_row = chosen_blend(out, size);
#else
    const auto by_row = blend;
#endif
    for (int64_t i = 0; i < size[0]; ++i) {
        for (int64_t j = 0; j < size[1]; ++j) {
            const int64_t row = rows.at(z[i] + y[j]), at = (i * size[1] + j) * width;
            by_row(back + at, front + at, rows.factor.data() + row, rows.far.data() + row, out + at, width);
            std::memcpy(label + at, rows.classes.data() + row, static_cast<size_t>(width));
        }
    }
#if defined(__x86_64__)
    _mm_sfence();  // stores past the caches are seen from here on
#endif
}
