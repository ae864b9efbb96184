// Labels of one regular grid and the blend of two volumes by them, in one pass.
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

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

}  // namespace

// Rows of one cell of the grid have the same label, which is looked up once for all of them.
extern "C" void fuse_grid(const float* back, const float* front, float* out, uint8_t* label, const uint8_t* table,
                          const int64_t* z, const int64_t* y, const int64_t* x, const int64_t* size, int64_t levels) {
    const int64_t width = size[2];
    std::vector<float> factor(width);
    std::vector<uint32_t> far(width);
    std::vector<uint8_t> classes(width);
    int64_t last = -1;
    for (int64_t i = 0; i < size[0]; ++i) {
        for (int64_t j = 0; j < size[1]; ++j) {
            const int64_t cell = z[i] + y[j], at = (i * size[1] + j) * width;
            for (int64_t k = 0; cell != last && k < width; ++k) {
                classes[k] = table[cell + x[k]];
                const float weight = static_cast<float>(classes[k]) / static_cast<float>(levels);
                far[k] = weight < 0.5f ? 0u : ~0u;
                factor[k] = weight < 0.5f ? weight : weight - 1.0f;
            }
            last = cell;
            std::memcpy(label + at, classes.data(), width);
            blend(back + at, front + at, factor.data(), far.data(), out + at, width);
        }
    }
}
