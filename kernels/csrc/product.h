// Products of rows of x with the rows of a weight: the one inner loop of matrix products and of the head's logits.
//
// How      A tile's lanes are rows of the weight, so every sum stays in its lane. Tiles are multiplied panel by panel; a
//          weight that is stored smaller is unpacked into a panel of the first-level cache, once for all rows of x.
// Bits     The products of a group of channels (plain_group where there are no scales) are added up in ascending order,
//          from zero; then the group's sum, times its scale, is added to the result, and x's sum times the minimum. How
//          many rows or tiles are computed together does not enter it.
// Shapes   M rows of x   kTile rows of w a tile   K channels

#pragma once

#include <type_traits>
#include <vector>

#include "weight.h"

namespace PS_ISA {

// Rows of x as they are multiplied: padded with zeros to whole chunks of channels.
template <class P>
struct Rows {
  const P* data;
  long stride;
  const P* operator[](long m) const { return data + m * stride; }
};

// What x is multiplied as: bfloat16, or float32.
template <class T>
using Panel = std::conditional_t<std::is_same_v<T, bf16>, bf16, float>;

// One channel, or a pair of bfloat16.
template <class P>
struct Lane;
template <>
struct Lane<float> {
  static constexpr long channels = 1;
  static constexpr long plain_group = 32;  // channels that are summed before they are added to the rest: sums stay exact
  static vf spread(const float* p) { return set(*p); }
  static vf load(const float* p) { return PS_ISA::load(p); }
  static vf dot(vf acc, vf a, vf b) { return fma(a, b, acc); }
};
template <>
struct Lane<bf16> {
  static constexpr long channels = 2;
  static constexpr long plain_group = 256;
  static vi spread(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return set_pairs(pair);
  }
  static vi load(const bf16* p) { return load_pairs(p); }
  static vf dot(vf acc, vi a, vi b) { return dot_pairs(acc, a, b); }
};

// Groups of a panel's channels, for one tile.
struct Groups {
  const float* scales;  // [groups][kTile], null: 1
  const float* minimums;  // likewise, null: 0
};

// out[m][t * kTile ...] += the groups of x[m] times tile t, for MR rows and NT tiles. ahead: how many elements behind
// those of w begin to come in meanwhile, 0: none.
template <class P, int MR, int NT, bool SCALES, bool MINIMUMS>
inline void multiply(const P* const* x, const P* const* w, const Groups* groups, const float* sums, long sums_stride,
                     long num_groups, long group, float* const* out, long ahead) {
  using L = Lane<P>;
  constexpr int NV = NT * kTile / W, per_tile = kTile / W;
  vf total[MR][NV];
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) total[m][v] = load(out[m] + v * W);
  }
  for (long g = 0; g < num_groups; ++g) {
    vf acc[MR][NV];
    for (int m = 0; m < MR; ++m) {
      for (int v = 0; v < NV; ++v) acc[m][v] = zero();
    }
    for (long k = g * group; k < (g + 1) * group; k += L::channels) {
      decltype(L::load(w[0])) ws[NV];
      for (int v = 0; v < NV; ++v) ws[v] = L::load(w[v / per_tile] + k * kTile + v % per_tile * W * L::channels);
      if (!SCALES && ahead != 0) {
        for (int t = 0; t < NT; ++t) _mm_prefetch(w[t] + k * kTile + ahead, _MM_HINT_T0);
      }
      for (int m = 0; m < MR; ++m) {
        const auto xs = L::spread(x[m] + k);
        for (int v = 0; v < NV; ++v) acc[m][v] = L::dot(acc[m][v], xs, ws[v]);
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
    for (int v = 0; v < NV; ++v) store(out[m] + v * W, total[m][v]);
  }
}

#if defined(__AVX512BF16__)

constexpr long kAhead = 4096;  // bytes of a stream of blocks (measured)

// The same for the groups [g, end) of integers that are unpacked in registers: for rows that are too few to share a panel.
template <int BITS, int MR, int NT>
inline void multiply_integers(const ps::Weight& w, const Layout& layout, const Table& table, long tile, long end,
                              const bf16* const* x, const float* sums, long sums_stride, float* const* out) {
  const Lookup<BITS> lookup(table);
  vf total[MR][NT];
  for (int m = 0; m < MR; ++m) {
    for (int t = 0; t < NT; ++t) total[m][t] = zero();
  }
  Place first(layout, tile, 0);
  for (long g = 0; g < end; ++g, first.next()) {
    const long step = first.to_next_tile();
    const long channels = std::min<long>(w.group, layout.channels - g * w.group);
    vf acc[MR][NT];
    for (int m = 0; m < MR; ++m) {
      for (int t = 0; t < NT; ++t) acc[m][t] = zero();
    }
    for (long k = 0; k < channels; k += kChunk) {
      for (int t = 0; t < NT; ++t) {
        const uint8_t* chunk = first.values + t * step + k * (kTile * BITS / kChunk);
        _mm_prefetch(chunk + kAhead, _MM_HINT_T0);
        if constexpr (BITS > 4) _mm_prefetch(chunk + kAhead + 64, _MM_HINT_T0);
        vi pairs[4];
        unpack_chunk<BITS>(chunk, lookup, pairs);
        for (int m = 0; m < MR; ++m) {
          for (int j = 0; j < 4; ++j) acc[m][t] = dot_pairs(acc[m][t], Lane<bf16>::spread(x[m] + g * w.group + k + 2 * j), pairs[j]);
        }
      }
    }
    for (int t = 0; t < NT; ++t) {
      const vf scale = scales_of(w, layout, first, first.block + t * step, 0);
      for (int m = 0; m < MR; ++m) total[m][t] = fma(acc[m][t], scale, total[m][t]);
      if (w.has_min) {
        const vf minimum = minimums_of(w, layout, first, first.block + t * step, 0);
        for (int m = 0; m < MR; ++m) total[m][t] = fma(set(sums[g * sums_stride + m]), minimum, total[m][t]);
      }
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int t = 0; t < NT; ++t) store(out[m] + t * kTile, total[m][t]);
  }
}

#endif

// So many sums stay in registers: with scales, those of the groups before, too.
constexpr int kMostRows = W == 16 ? 8 : 2, kMostScaledRows = W == 16 ? 6 : 2, kMostTiles = 8;
constexpr long kMostChannels = 256;  // of a panel
#if defined(__AVX512BF16__)
constexpr int kFewRows = 8;  // at most so many are multiplied without a panel
#else
constexpr int kFewRows = 0;
#endif

// What one thread needs to unpack tiles; kept from call to call.
template <class P>
struct Panels {
  std::vector<P> values;
  std::vector<float> scales, minimums;
  static Panels& of_this_thread() {
    static thread_local Panels panels;
    return panels;
  }
};

// x's sum in each group, [groups][M], for a weight with minimums.
template <class P>
std::vector<float> group_sums(const ps::Weight& w, const Layout& layout, const Rows<P>& x, long M) {
  if (!w.has_min) return {};
  const long num = layout.num_groups;
  std::vector<float> sums(M * num);
  for (long m = 0; m < M; ++m) {
    for (long g = 0; g < num; ++g) {
      const long end = std::min<long>(layout.channels, (g + 1) * w.group);
      vf total = zero();
      for (long c = g * w.group; c < end; c += W) {
        total = c + W <= end ? add(total, load(x[m] + c)) : add(total, load(x[m] + c, end - c));
      }
      sums[g * M + m] = sum(total);
    }
  }
  return sums;
}

// A weight and M rows of x that it is multiplied with.
template <class P>
class Product {
 public:
  Product(const ps::Weight& w, Rows<P> x, long M)
      : w_(w), layout_(w), table_(w), x_(x), M_(M), channels_(layout_.channels), group_(w.bits == 0 ? Lane<P>::plain_group : w.group),
        num_groups_((channels_ + group_ - 1) / group_), sums_(group_sums(w, layout_, x, M)) {}

  // out[m][0 ... kTile * count) for `count` tiles from `first` on. out: [M] rows, `stride` apart.
  void tiles(long first, long count, float* out, long stride) const {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<P, bf16>) {
      if (w_.bits != 0 && M_ <= kFewRows) return few_rows(first, count, out, stride);
    }
#endif
    for (long m = 0; m < M_; ++m) std::memset(out + m * stride, 0, sizeof(float) * kTile * count);
    long t = 0;
    if (M_ == 1) {
      for (; t + 8 <= count; t += 8) all_groups<8>(first + t, out + t * kTile, stride);
    }
    for (; t + 2 <= count; t += 2) all_groups<2>(first + t, out + t * kTile, stride);
    for (; t < count; ++t) all_groups<1>(first + t, out + t * kTile, stride);
  }

 private:
#if defined(__AVX512BF16__)
  template <int MR = kFewRows>
  void few_rows(long first, long count, float* out, long stride) const {
    if constexpr (MR > 1) {
      if (M_ < MR) return few_rows<MR - 1>(first, count, out, stride);
    }
    constexpr int NT = MR <= 4 ? kQuad : 1;  // more sums would not stay in registers
    for (long t = first; t < first + count;) {
      const bool whole = t % NT == 0 && t + NT <= first + count;
      float* const place = out + (t - first) * kTile;
      with_bits(w_.bits, [&](auto bits) {
        constexpr int BITS = decltype(bits)::value;
        whole ? integers<BITS, MR, NT>(t, place, stride) : integers<BITS, MR, 1>(t, place, stride);
      });
      t += whole ? NT : 1;
    }
  }

  template <int BITS, int MR, int NT>
  void integers(long tile, float* out, long stride) const {
    const bf16* x[MR];
    float* places[MR];
    for (int m = 0; m < MR; ++m) {
      x[m] = x_[m];
      places[m] = out + m * stride;
    }
    multiply_integers<BITS, MR, NT>(w_, layout_, table_, tile, num_groups_, x, sums_of(0, 0), M_, places);
  }
#endif

  template <int NT>
  void all_groups(long tile, float* out, long stride) const {
    const long at_once = (w_.bits == 0 ? kMostChannels : M_ == 1 ? kMostChannels / 4 : kMostChannels) / group_;
    const long whole = channels_ / group_;
    for (long g = 0; g < whole; g += at_once) some_groups<NT>(tile, g, std::min(at_once, whole - g), group_, out, stride);
    if (whole < num_groups_) some_groups<NT>(tile, whole, 1, channels_ - whole * group_, out, stride);
  }

  // The panel of groups [g, g + num), and their scales. What the next one is made of begins to come in.
  template <int BITS>
  void unpack_groups(long tile, long g, long num, long group, P* panel, float* scales, float* minimums) const {
    const long ahead = M_ > 1 ? layout_.tile / num_groups_ * kQuad * num : 0;
    Place place(layout_, tile, g);
    for (long i = 0; i < num; ++i, place.next(), panel += group * kTile, scales += kTile, minimums += kTile) {
      unpack_values<BITS>(w_, table_, place.values, group, panel);
      for (long byte = 0; byte < layout_.values; byte += 64) _mm_prefetch(place.values + ahead + byte, _MM_HINT_T0);
      for (long lane = 0; lane < kTile; lane += W) {
        store(scales + lane, scales_of(w_, layout_, place, place.block, lane));
        if (w_.has_min) store(minimums + lane, minimums_of(w_, layout_, place, place.block, lane));
      }
    }
  }

  template <int NT>
  void some_groups(long tile, long g, long num, long group, float* out, long stride) const {
    Panels<P>& own = Panels<P>::of_this_thread();
    const long channel = g * group_, channels = num * group, size = channels * kTile;
    own.values.resize(kMostTiles * kMostChannels * kTile);
    own.scales.resize(kMostTiles * kMostChannels * kTile / 8);
    own.minimums.resize(kMostTiles * kMostChannels * kTile / 8);
    const P* w[NT];
    Groups groups[NT];
    for (int t = 0; t < NT; ++t) {
      P* panel = own.values.data() + t * size;
      groups[t] = {nullptr, nullptr};
      if (w_.bits == 0) {
        w[t] = panel_of(w_, layout_, tile + t, channel, channels, panel);
        continue;
      }
      float* scales = own.scales.data() + t * num * kTile;
      float* minimums = own.minimums.data() + t * num * kTile;
      const auto unpack_bits = [&](auto bits) { unpack_groups<decltype(bits)::value>(tile + t, g, num, group, panel, scales, minimums); };
      with_bits(w_.bits, unpack_bits);
      w[t] = panel;
      groups[t] = {scales, minimums};
    }
    const long most = w_.bits == 0 ? kMostRows : kMostScaledRows, blocks = (M_ + most - 1) / most;
    for (long b = 0; b < blocks; ++b) {
      const long m = M_ * b / blocks;
      rows<NT>(static_cast<int>(M_ * (b + 1) / blocks - m), m, w, groups, g, num, group, out, stride);
    }
  }

  // `count` rows from m on, as many as stay in registers.
  template <int NT, int MR = NT <= 2 ? kMostRows : 1>
  void rows(int count, long m, const P* const* w, const Groups* groups, long g, long num, long group, float* out, long stride) const {
    if constexpr (MR > 1) {
      if (count < MR) return rows<NT, MR - 1>(count, m, w, groups, g, num, group, out, stride);
    }
    const P* x[MR];
    float* places[MR];
    for (int i = 0; i < MR; ++i) {
      x[i] = x_[m + i] + g * group_;
      places[i] = out + (m + i) * stride;
    }
    const float* sums = sums_of(m, g);
    if (w_.bits == 0) {
      // The last rows find this panel in a cache, and see to the next one.
      const long ahead = m > 0 && m + count == M_ && w_.stride == 0 ? num * group * kTile : 0;
      return multiply<P, MR, NT, false, false>(x, w, groups, sums, M_, num, group, places, ahead);
    }
    if constexpr (MR <= kMostScaledRows) {
      w_.has_min ? multiply<P, MR, NT, true, true>(x, w, groups, sums, M_, num, group, places, 0)
                 : multiply<P, MR, NT, true, false>(x, w, groups, sums, M_, num, group, places, 0);
    }
  }

  // The sums of groups from g on, for rows from m on; null without minimums.
  const float* sums_of(long m, long g) const { return sums_.empty() ? nullptr : sums_.data() + g * M_ + m; }

  const ps::Weight& w_;
  const Layout layout_;
  const Table table_;
  const Rows<P> x_;
  const long M_, channels_, group_, num_groups_;
  const std::vector<float> sums_;
};

// Rows of x as `Product` takes them: where they lie, or a copy in `own`.
template <class P, class T>
inline Rows<P> prepared(const T* x, long stride, long M, long K, std::vector<P>& own) {
  const long padded = rounded_up(K, kChunk);
  if constexpr (std::is_same_v<P, T>) {
    if (padded == K) return {x, stride};
  }
  own.assign(M * padded, P{});
  for (long m = 0; m < M; ++m) {
    for_vectors(K, [&](long k, auto... n) { store(&own[m * padded + k], load(x + m * stride + k, n...), n...); });
  }
  return {own.data(), padded};
}

}  // namespace PS_ISA
