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
  for (long c = 0; c < channels; ++c) {
    uint8_t* chunk = place + c / kChunk * kTile * w.bits;
    const int x = b.integers[c];
    const long j = c % kChunk / 2, l = 2 * lane + c % 2;
    if (w.bits == 8) {
      chunk[32 * j + l] = static_cast<uint8_t>(x);
      continue;
    }
    if (w.bits <= 3) {
      chunk[l] |= static_cast<uint8_t>((x & 3) << (2 * j));
      chunk += 32;
    } else {
      uint16_t word;
      std::memcpy(&word, chunk + 2 * l, 2);
      word |= static_cast<uint16_t>((x & 15) << (4 * j));
      std::memcpy(chunk + 2 * l, &word, 2);
      chunk += 64;
    }
    if (w.bits == 6) {
      chunk[l] |= static_cast<uint8_t>((x >> 4 & 3) << (2 * j));
    } else if (w.bits % 2 == 1) {
      chunk[4 * j + l / 8] |= static_cast<uint8_t>((x >> (w.bits - 1) & 1) << (l % 8));
    }
  }
}

void integers_of(const PackArgs& a, long row, long first, long channels, Block& b) {
  const Weight& w = *a.weight;
  const uint8_t* source = static_cast<const uint8_t*>(a.source) + row * a.row_stride;
  for (long c = 0; c < channels; ++c) {
    const long k = first + c;
    if (k >= w.channels) {
      b.integers[c] = 0;  // padding
    } else if (w.bits == 4) {
      b.integers[c] = source[k / 2] >> (k % 2 * 4) & 15;
    } else {
      b.integers[c] = static_cast<int8_t>(source[k]);
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
  for (long c = 0; c < a.num_channels; ++c) {
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
