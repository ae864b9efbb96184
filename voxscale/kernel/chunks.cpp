// Decodes the chunks of a Zarr v3 shard that a box touches, straight into the box.
//
// Each chunk is [Blosc frame][crc32c, 4 bytes little-endian]. The checksum is
// compared before the frame is decoded, so a damaged byte never reaches the
// decoder. All sizes come from the caller, which has checked that every chunk
// lies inside the buffer.
#include <cstdint>
#include <cstring>

#include "blosc2.h"

#if defined(__SSE4_2__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace {

uint32_t crc32c(const uint8_t* p, int64_t n) {
#if defined(__SSE4_2__) || defined(__ARM_FEATURE_CRC32)
    uint64_t crc = 0xffffffffu;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;
        std::memcpy(&word, p, 8);
#if defined(__SSE4_2__)
        crc = _mm_crc32_u64(crc, word);
#else
        crc = __crc32cd(static_cast<uint32_t>(crc), word);
#endif
    }
    uint32_t last = static_cast<uint32_t>(crc);
    for (; n > 0; p++, n--) {
#if defined(__SSE4_2__)
        last = _mm_crc32_u8(last, *p);
#else
        last = __crc32cb(last, *p);
#endif
    }
    return ~last;
#else
    static uint32_t table[256];
    static const bool made = [] {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = (c >> 1) ^ (0x82f63b78u & (0u - (c & 1u)));
            table[i] = c;
        }
        return true;
    }();
    (void)made;
    uint32_t crc = 0xffffffffu;
    for (; n > 0; p++, n--) crc = (crc >> 8) ^ table[(crc ^ *p) & 0xffu];
    return ~crc;
#endif
}

struct Place {  // one chunk: where it is in the buffer, and which part of it goes where in the box
    int64_t offset, bytes;
    int64_t from[3], to[3], count[3];
};

template <typename In, typename Out>
void scatter(const uint8_t* raw, const int64_t* chunk, const Place& p, void* box, const int64_t* shape) {
    for (int64_t z = 0; z < p.count[0]; z++) {
        for (int64_t y = 0; y < p.count[1]; y++) {
            const In* from = reinterpret_cast<const In*>(raw) +
                             ((p.from[0] + z) * chunk[1] + p.from[1] + y) * chunk[2] + p.from[2];
            Out* to = static_cast<Out*>(box) + ((p.to[0] + z) * shape[1] + p.to[1] + y) * shape[2] + p.to[2];
            if (sizeof(In) == sizeof(Out)) {
                std::memcpy(to, from, static_cast<size_t>(p.count[2]) * sizeof(In));
            } else {
                for (int64_t x = 0; x < p.count[2]; x++) to[x] = static_cast<Out>(from[x]);
            }
        }
    }
}

using Scatter = void (*)(const uint8_t*, const int64_t*, const Place&, void*, const int64_t*);

// Same type in and out goes by size alone; a conversion to float32 by the type.
Scatter chosen(char kind, int size, bool to_float) {
    if (to_float) {
        if (kind == 'i') return size == 1 ? scatter<int8_t, float> : size == 2 ? scatter<int16_t, float> : nullptr;
        if (kind == 'u') return size == 1 ? scatter<uint8_t, float> : size == 2 ? scatter<uint16_t, float> : nullptr;
        return kind == 'f' && size == 4 ? scatter<float, float> : nullptr;
    }
    return size == 1   ? scatter<uint8_t, uint8_t>
           : size == 2 ? scatter<uint16_t, uint16_t>
           : size == 4 ? scatter<uint32_t, uint32_t>
           : size == 8 ? scatter<uint64_t, uint64_t>
                       : nullptr;
}

thread_local blosc2_context* context = nullptr;

}  // namespace

// Returns 0; i + 1 if chunk i is damaged; -1 if the number type is not known.
extern "C" int64_t read_chunks(const uint8_t* buffer, const Place* places, int64_t count, const int64_t* chunk,
                               char kind, int size, int to_float, void* box, const int64_t* shape, uint8_t* scratch) {
    if (context == nullptr) {
        blosc2_dparams params = BLOSC2_DPARAMS_DEFAULTS;
        params.nthreads = 1;
        context = blosc2_create_dctx(params);
    }
    const Scatter scatter_one = chosen(kind, size, to_float != 0);
    if (scatter_one == nullptr || context == nullptr) return -1;
    const int32_t raw = static_cast<int32_t>(chunk[0] * chunk[1] * chunk[2] * size);
    for (int64_t i = 0; i < count; i++) {
        const Place& p = places[i];
        const uint8_t* frame = buffer + p.offset;
        const int64_t length = p.bytes - 4;
        if (length < 16) return i + 1;
        uint32_t stored;
        std::memcpy(&stored, frame + length, 4);
        if (crc32c(frame, length) != stored) return i + 1;
        if (blosc2_decompress_ctx(context, frame, static_cast<int32_t>(length), scratch, raw) != raw) return i + 1;
        scatter_one(scratch, chunk, p, box, shape);
    }
    return 0;
}

extern "C" void start() { blosc2_init(); }
