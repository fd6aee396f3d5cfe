// Rows of a checkpoint into the layout of weight.h: floats, integers with scales, or blocks as GGUF has them.
//
// Nothing is rounded but floats that change their dtype: integers, scales and factors keep every bit they have.
// Source   block formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h

#include <cstring>
#include <vector>

#include "gguf.h"
#include "threads.h"
#include "weight.h"

namespace PS_ISA {
namespace {

using ps::Block;
using ps::PackArgs;
using ps::Weight;

// BITS bits of every second of 8 bytes, side by side: those of channels 0, 2, 4 and 6.
template <int BITS>
uint32_t gathered(uint64_t bytes) {
  constexpr uint64_t field = (1 << BITS) - 1, two = (1 << 2 * BITS) - 1;
  bytes &= field * 0x0001000100010001;
  bytes = (bytes | bytes >> (16 - BITS)) & two * 0x0000000100000001;
  return static_cast<uint32_t>(bytes | bytes >> (32 - 2 * BITS)) & ((1 << 4 * BITS) - 1);
}

// 8 channels of one row into its lane, whose bits are zeros.
void put_chunk(long bits, uint8_t* chunk, long lane, const uint8_t* integers) {
  if (bits == 8 && !kByMagnitude) {
    for (long c = 0; c < kChunk; ++c) chunk[c * kTile + lane] = integers[c];
    return;
  }
  uint64_t bytes;
  std::memcpy(&bytes, integers, 8);
  if (bits == 8) {
    const uint64_t minus = bytes >> 7 & 0x0101010101010101;  // of each byte
    bytes = ((bytes ^ minus * 255) + minus) | minus << 7;
    for (long j = 0; j < 4; ++j) {
      const uint16_t pair = static_cast<uint16_t>(bytes >> 16 * j);
      std::memcpy(chunk + 64 * (j / 2) + 16 * (lane / 4) + 8 * (j % 2) + 2 * (lane % 4), &pair, 2);
    }
    return;
  }
  if (bits <= 3) {
    const uint32_t low = gathered<2>(bytes) | gathered<2>(bytes >> 8) << 8;
    std::memcpy(chunk + 2 * lane, &low, 2);
    chunk += 32;
  } else {
    const uint32_t low = gathered<4>(bytes) | gathered<4>(bytes >> 8) << 16;
    std::memcpy(chunk + 4 * lane, &low, 4);
    chunk += 64;
  }
  if (bits == 6) {
    const uint32_t high = gathered<2>(bytes >> 4) | gathered<2>(bytes >> 12) << 8;
    std::memcpy(chunk + 2 * lane, &high, 2);
  } else if (bits % 2 == 1) {
    for (long j = 0; j < 4; ++j) {
      const uint64_t pair = bytes >> (16 * j + bits - 1);
      chunk[4 * j + lane / 4] |= static_cast<uint8_t>(((pair & 1) | (pair >> 7 & 2)) << (lane % 4 * 2));
    }
  }
}

// One block of one row into its lane. scales: the scale, and the minimum if there is one, as they are stored.
void put(const Weight& w, const Layout& layout, uint8_t* block, long channels, long row, const Block& b) {
  const long lane = row % kTile, scale = bytes_of(w.scale_dtype);
  for (int i = 0; i <= w.has_min; ++i) std::memcpy(block + (i * kTile + lane) * scale, b.scales + i * scale, scale);
  const long groups = (channels + w.group - 1) / w.group;
  uint8_t* place = block + layout.scales;
  if (w.two_level) {
    for (long g = 0; g < groups; ++g) {
      place[g * kTile + lane] = static_cast<uint8_t>(b.factors[g]);
      if (w.has_min) place[(groups + g) * kTile + lane] = b.min_factors[g];
    }
  }
  place += groups * layout.factors;
  for (long c = 0; c < channels; c += kChunk, place += kTile * w.bits) put_chunk(w.bits, place, lane, b.integers + c);
}

void integers_of(const PackArgs& a, long row, long first, long channels, Block& b) {
  const Weight& w = *a.weight;
  const uint8_t* source = static_cast<const uint8_t*>(a.source) + row * a.row_stride;
  for (long c = 0; c < channels; ++c) {
    const long k = first + c;
    if (k >= w.channels) {
      b.integers[c] = 0;  // padding
    } else if (w.bits == 4) {
      b.integers[c] = static_cast<uint8_t>(source[k / 2] >> (k % 2 * 4) & 15);
    } else {
      b.integers[c] = source[k];
    }
  }
  const long scale = bytes_of(w.scale_dtype), place = row * a.scale_row + (a.scale_group == 0 ? 0 : first / w.block * a.scale_group);
  std::memcpy(b.scales, static_cast<const uint8_t*>(a.scales) + place * scale, scale);
  if (w.has_min) std::memcpy(b.scales + scale, static_cast<const uint8_t*>(a.minimums) + place * scale, scale);
}

void pack_blocks(const PackArgs& a, const Layout& layout, long row, long source_row) {
  const Weight& w = *a.weight;
  Block b;
  const long K = layout.channels;
  const long source_block = a.gguf_type < 0 ? 0 : ps::bytes_of_block(a.gguf_type);
  const uint8_t* source = static_cast<const uint8_t*>(a.source) + source_row * a.row_stride;
  for (long first = 0; first < K; first += w.block) {
    const long channels = std::min<long>(w.block, K - first);
    if (a.gguf_type < 0) {
      integers_of(a, source_row, first, channels, b);
    } else {
      ps::read_block(a.gguf_type, source + first / w.block * source_block, b);
    }
    put(w, layout, const_cast<uint8_t*>(block_of(layout, row / kTile, first / w.block)), channels, row, b);
  }
}

template <class From, class To>
void pack_floats(const PackArgs& a, To* tile, const long* source_rows) {
  const From* source = static_cast<const From*>(a.source);
  long c = 0;
  if constexpr (std::is_same_v<From, bf16> && std::is_same_v<To, bf16>) {  // pairs stay pairs
    for (; a.channel_stride == 1 && a.first_channel % 2 == 0 && c + 1 < a.num_channels; c += 2) {
      bf16* place = tile + (a.first_channel + c) * kTile;
      for (long lane = 0; lane < kTile; ++lane) {
        if (source_rows[lane] >= 0) std::memcpy(place + 2 * lane, source + source_rows[lane] * a.row_stride + c, 4);
      }
    }
  }
  for (; c < a.num_channels; ++c) {
    const long k = a.first_channel + c;
    To* place = std::is_same_v<To, bf16> ? tile + k / 2 * 2 * kTile + k % 2 : tile + k * kTile;
    constexpr long step = std::is_same_v<To, bf16> ? 2 : 1;
    for (long lane = 0; lane < kTile; ++lane) {
      if (source_rows[lane] < 0) continue;
      const From x = source[source_rows[lane] * a.row_stride + c * a.channel_stride];
      if constexpr (std::is_same_v<From, To>) {
        place[step * lane] = x;
      } else {
        place[step * lane] = rounded<To>(widened(x));
      }
    }
  }
}

}  // namespace

int64_t packed_bytes(const Weight& w) { return Layout(w).tiles * Layout(w).tile; }

void pack(const PackArgs& a) {
  const Weight& w = *a.weight;
  const Layout layout(w);
  std::vector<long> source_rows(layout.tiles * kTile, -1);
  for (long i = 0; i < a.num_rows; ++i) source_rows[a.rows[i]] = i;
  ps::parallel(layout.tiles, 1, a.threads, [&](long begin, long end) {
    for (long t = begin; t < end; ++t) {
      const long* from = &source_rows[t * kTile];
      if (std::all_of(from, from + kTile, [](long row) { return row < 0; })) continue;
      if (a.gguf_type == -2) {
        with_dtype(a.source_dtype, [&](auto source) {
          with_dtype(w.dtype, [&](auto to) { pack_floats<decltype(source), decltype(to)>(a, reinterpret_cast<decltype(to)*>(const_cast<uint8_t*>(layout.data) + t * layout.tile), from); });
        });
        continue;
      }
      for (long lane = 0; lane < kTile; ++lane) {
        if (from[lane] >= 0) pack_blocks(a, layout, t * kTile + lane, from[lane]);
      }
    }
  });
}

}  // namespace PS_ISA
