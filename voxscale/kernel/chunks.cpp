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

constexpr int LANES = 3;

#if defined(__SSE4_2__)
inline uint64_t step8(uint64_t crc, uint64_t word) { return _mm_crc32_u64(crc, word); }
inline uint32_t step1(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
#elif defined(__ARM_FEATURE_CRC32)
inline uint64_t step8(uint64_t crc, uint64_t word) { return __crc32cd(static_cast<uint32_t>(crc), word); }
inline uint32_t step1(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
#else
inline uint32_t step1(uint32_t crc, uint8_t byte) {
    crc ^= byte;
    for (int k = 0; k < 8; k++) crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u)));
    return crc;
}
inline uint64_t step8(uint64_t crc, uint64_t word) {
    for (int k = 0; k < 8; k++) crc = step1(static_cast<uint32_t>(crc), static_cast<uint8_t>(word >> (8 * k)));
    return crc;
}
#endif

uint64_t word_at(const uint8_t* p) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    return word;
}

uint32_t finish(uint64_t crc, const uint8_t* p, int64_t n) {
    for (; n >= 8; p += 8, n -= 8) crc = step8(crc, word_at(p));
    uint32_t last = static_cast<uint32_t>(crc);
    for (; n > 0; p++, n--) last = step1(last, *p);
    return ~last;
}

// The instruction takes three cycles and can start every cycle, so three chunks are summed side by side.
void crc32c(const uint8_t* const* p, const int64_t* n, int lanes, uint32_t* out) {
    uint64_t crc[LANES] = {0xffffffffu, 0xffffffffu, 0xffffffffu};
    int64_t done = 0;
    if (lanes == LANES) {
        int64_t least = n[0] < n[1] ? n[0] : n[1];
        least = least < n[2] ? least : n[2];
        for (; done + 8 <= least; done += 8) {
            crc[0] = step8(crc[0], word_at(p[0] + done));
            crc[1] = step8(crc[1], word_at(p[1] + done));
            crc[2] = step8(crc[2], word_at(p[2] + done));
        }
    }
    for (int i = 0; i < lanes; i++) out[i] = finish(crc[i], p[i] + done, n[i] - done);
}

struct Place {  // one chunk: where it is in the buffer, and which part of it goes where in the box
    int64_t offset, bytes;
    int64_t from[3], to[3], count[3];
};

// Writes a run of chunks that lie side by side along x, so that whole rows of the box are written at once.
template <typename In, typename Out>
void scatter(const uint8_t* raw, int64_t raw_bytes, const int64_t* chunk, const Place* run, int64_t length, void* box,
             const int64_t* shape) {
    for (int64_t z = 0; z < run->count[0]; z++) {
        for (int64_t y = 0; y < run->count[1]; y++) {
            const int64_t row = ((run->from[0] + z) * chunk[1] + run->from[1] + y) * chunk[2];
            Out* to = static_cast<Out*>(box) + ((run->to[0] + z) * shape[1] + run->to[1] + y) * shape[2];
            for (int64_t i = 0; i < length; i++) {
                const In* from = reinterpret_cast<const In*>(raw + i * raw_bytes) + row + run[i].from[2];
                Out* there = to + run[i].to[2];
                if (sizeof(In) == sizeof(Out)) {
                    std::memcpy(there, from, static_cast<size_t>(run[i].count[2]) * sizeof(In));
                } else {
                    for (int64_t x = 0; x < run[i].count[2]; x++) there[x] = static_cast<Out>(from[x]);
                }
            }
        }
    }
}

using Scatter = void (*)(const uint8_t*, int64_t, const int64_t*, const Place*, int64_t, void*, const int64_t*);

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

// Returns 0; i + 1 if chunk i is damaged; -1 if the number type is not known. `scratch` holds `runs` decoded chunks,
// at least as many as lie side by side along x.
extern "C" int64_t read_chunks(const uint8_t* buffer, const Place* places, int64_t count, const int64_t* chunk,
                               char kind, int size, int to_float, void* box, const int64_t* shape, uint8_t* scratch,
                               int64_t runs) {
    if (context == nullptr) {
        blosc2_dparams params = BLOSC2_DPARAMS_DEFAULTS;
        params.nthreads = 1;
        context = blosc2_create_dctx(params);
    }
    const Scatter scatter_run = chosen(kind, size, to_float != 0);
    if (scatter_run == nullptr || context == nullptr) return -1;
    const int32_t raw = static_cast<int32_t>(chunk[0] * chunk[1] * chunk[2] * size);
    for (int64_t first = 0; first < count;) {
        int64_t length = 1;
        while (first + length < count && length < runs && places[first + length].to[0] == places[first].to[0] &&
               places[first + length].to[1] == places[first].to[1])
            length++;
        for (int64_t i = 0; i < length; i += LANES) {
            const int lanes = static_cast<int>(length - i < LANES ? length - i : LANES);
            const uint8_t* frames[LANES];
            int64_t bytes[LANES];
            uint32_t sums[LANES], stored;
            for (int k = 0; k < lanes; k++) {
                const Place& p = places[first + i + k];
                frames[k] = buffer + p.offset;
                bytes[k] = p.bytes - 4;
                if (bytes[k] < 16) return first + i + k + 1;
            }
            crc32c(frames, bytes, lanes, sums);
            for (int k = 0; k < lanes; k++) {
                std::memcpy(&stored, frames[k] + bytes[k], 4);
                if (sums[k] != stored) return first + i + k + 1;
                if (blosc2_decompress_ctx(context, frames[k], static_cast<int32_t>(bytes[k]), scratch + (i + k) * raw,
                                          raw) != raw)
                    return first + i + k + 1;
            }
        }
        scatter_run(scratch, raw, chunk, places + first, length, box, shape);
        first += length;
    }
    return 0;
}

extern "C" void start() { blosc2_init(); }
