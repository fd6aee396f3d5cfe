// A few rows of x times a few tiles of a weight, in registers: panels of numbers, or integers as they are stored.
//
// Bits     The products of a group of channels are added up in ascending order, from zero; then the group's sum, times its
//          scale, is added to the result, and x's sum times the minimum. How many rows or tiles are computed together does
//          not enter it.

#pragma once

#include <type_traits>

#include "integers.h"

namespace PS_ISA {

// Rows of x as they are multiplied: padded with zeros to whole chunks of channels.
template <class P>
struct Rows {
  const P* data;
  long stride;
  const P* operator[](long m) const { return data + m * stride; }
};

// One channel, or a pair of bfloat16.
template <class P>
struct Lane;
template <>
struct Lane<float> {
  using vector = vf;
  static constexpr long channels = 1;
  static vf spread(const float* p) { return set(*p); }
  static vf dot(vf acc, vf a, vf b) { return fma(a, b, acc); }
  static void store(float* p, vf x) { PS_ISA::store(p, x); }
  // Of channel k of a tile's floats, from row r on.
  static vf of(const float* w, long k, long r) { return load(w + k * kTile + r); }
  static vf of(const fp16* w, long k, long r) { return load(w + k * kTile + r); }
  static vf of(const bf16* w, long k, long r) {
    const vi pairs = load_pairs(w + k / 2 * 2 * kTile + 2 * r);
    return k % 2 == 0 ? even_of(pairs) : odd_of(pairs);
  }
};
#if defined(__AVX512BF16__)
template <>
struct Lane<bf16> {
  using vector = vi;
  static constexpr long channels = 2;
  static vi spread(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return set_words(pair);
  }
  static vf dot(vf acc, vi a, vi b) { return dot_pairs(acc, a, b); }
  static void store(bf16* p, vi x) { _mm512_storeu_si512(p, x); }
  static vi of(const bf16* w, long k, long r) { return load_pairs(w + k * kTile + 2 * r); }
};
#endif

// A compiler that may read a vector from memory again wherever it is used does so: more loads than a cycle has.
template <class V>
inline void in_register(V& x) {
  if constexpr (W == 8) asm("" : "+x"(x));
}

// What the sums of a panel's groups are multiplied with, and x's sums, for one tile: [groups][kTile].
struct Groups {
  const float *scales, *minimums;
};

// out[m][t * kTile ...] += the groups of x[m] times tile t, for MR rows and NT tiles. ahead: how many elements behind
// those of w begin to come in meanwhile, 0: none. groups and sums are read if SCALES and MINIMUMS say so.
template <class P, class S, int MR, int NT, bool SCALES, bool MINIMUMS>
inline void multiply(Rows<P> x, const S* const* w, const Groups* groups, const float* sums, long sums_stride, long num_groups,
                     long group, float* out, long out_stride, long ahead) {
  using L = Lane<P>;
  constexpr int NV = NT * kTile / W, per_tile = kTile / W;
  constexpr long together = std::is_same_v<S, bf16> ? 2 : 1;  // channels that lie in one lane
  vf total[MR][NV];
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) total[m][v] = load(out + m * out_stride + v * W);
  }
  for (long g = 0; g < num_groups; ++g) {
    vf acc[MR][NV];
    for (int m = 0; m < MR; ++m) {
      for (int v = 0; v < NV; ++v) acc[m][v] = zero();
    }
    for (long k = g * group; k < (g + 1) * group; k += together) {
      if (!SCALES && ahead != 0) {
        for (int t = 0; t < NT; ++t) _mm_prefetch(w[t] + k * kTile + ahead, _MM_HINT_T0);
      }
      for (long i = 0; i < together; i += L::channels) {
        typename L::vector ws[NV];
        for (int v = 0; v < NV; ++v) {
          ws[v] = L::of(w[v / per_tile], k + i, v % per_tile * W);
          if (MR > 1) in_register(ws[v]);
        }
        for (int m = 0; m < MR; ++m) {
          const auto xs = L::spread(x[m] + k + i);
          for (int v = 0; v < NV; ++v) acc[m][v] = L::dot(acc[m][v], xs, ws[v]);
        }
      }
    }
    for (int v = 0; v < NV; ++v) {
      const long i = g * kTile + v % per_tile * W;
      const vf scale = SCALES ? load(groups[v / per_tile].scales + i) : zero();
      for (int m = 0; m < MR; ++m) total[m][v] = SCALES ? fma(acc[m][v], scale, total[m][v]) : add(total[m][v], acc[m][v]);
      if constexpr (MINIMUMS) {
        const vf minimum = load(groups[v / per_tile].minimums + i);
        for (int m = 0; m < MR; ++m) total[m][v] = fma(set(sums[g * sums_stride + m]), minimum, total[m][v]);
      }
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) store(out + m * out_stride + v * W, total[m][v]);
  }
}

constexpr long kAhead = 4096;  // bytes of a stream of blocks (measured)

// The same for all groups of integers, which are unpacked in registers: for rows that are too few to share a panel.
template <class P, int BITS, int MR, int NT>
inline void multiply_integers(const ps::Weight& w, const Layout& layout, const Table<P>& table, long tile, Rows<P> x,
                              const float* sums, long sums_stride, float* out, long out_stride) {
  using L = Lane<P>;
  constexpr int NV = NT * kTile / W, per_tile = kTile / W;
  const Lookup<BITS, P> lookup(table);
  vf total[MR][NV];
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) total[m][v] = zero();
  }
  Place first(layout, tile, 0);
  for (long g = 0; g < layout.num_groups; ++g, first.next()) {
    const long step = first.to_next_tile();
    const long channels = std::min<long>(w.group, layout.channels - g * w.group);
    vf acc[MR][NV];
    for (int m = 0; m < MR; ++m) {
      for (int v = 0; v < NV; ++v) acc[m][v] = zero();
    }
    for (long k = 0; k < channels; k += kChunk) {
#pragma GCC unroll 8  // the sums stay in registers
      for (int v = 0; v < NV; ++v) {
        const uint8_t* chunk = first.values + v / per_tile * step + k * (kTile * BITS / kChunk);
        if (v % per_tile == 0) {
          _mm_prefetch(chunk + kAhead, _MM_HINT_T0);
          if constexpr (BITS > 4) _mm_prefetch(chunk + kAhead + 64, _MM_HINT_T0);
        }
        const Chunk<BITS, P> numbers(chunk, v % per_tile * W, lookup);
#pragma GCC unroll 8
        for (int i = 0; i < kChunk / L::channels; ++i) {
          const typename L::vector ws = numbers.lane(i);
          for (int m = 0; m < MR; ++m) acc[m][v] = L::dot(acc[m][v], L::spread(x[m] + g * w.group + k + i * L::channels), ws);
        }
      }
    }
    for (int v = 0; v < NV; ++v) {
      const uint8_t* block = first.block + v / per_tile * step;
      const vf scale = scales_of(w, layout, first, block, v % per_tile * W);
      for (int m = 0; m < MR; ++m) total[m][v] = fma(acc[m][v], scale, total[m][v]);
      if (w.has_min) {
        const vf minimum = minimums_of(w, layout, first, block, v % per_tile * W);
        for (int m = 0; m < MR; ++m) total[m][v] = fma(set(sums[g * sums_stride + m]), minimum, total[m][v]);
      }
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) store(out + m * out_stride + v * W, total[m][v]);
  }
}

}  // namespace PS_ISA
