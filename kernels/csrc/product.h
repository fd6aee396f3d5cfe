// Products of rows of x with the rows of a weight, for matrix products and for the head's logits.
//
// How      A tile's lanes are rows of the weight, so every sum stays in its lane. Tiles are multiplied panel by panel.
//          Integers are unpacked in registers for a few rows of x; for many into a panel of the first-level cache, once.
// Numbers  x and w are multiplied as pairs of bfloat16 where the processor does that, else as float32
// Bits     Those of multiply.h, with plain_group channels to a group where there are no scales
// Shapes   M rows of x   kTile rows of w a tile   K channels

#pragma once

#include <type_traits>
#include <vector>

#include "multiply.h"

namespace PS_ISA {

// What x is multiplied as.
#if defined(__AVX512BF16__)
template <class T>
using Panel = std::conditional_t<std::is_same_v<T, bf16>, bf16, float>;
#else
template <class>
using Panel = float;
#endif

// Channels of floats that are summed before they are added to the rest: sums of float32 stay exact.
inline long plain_group(const ps::Weight& w) { return w.dtype == ps::kFloat32 ? 32 : 256; }

// How many sums stay in registers: rows that share a panel (with scales there are the sums of the groups before, too), the
// tiles they are multiplied with together, and those of a row that is alone.
constexpr int kMostRows = W == 16 ? 8 : 6, kMostScaledRows = 6, kSharedTiles = W == 16 ? 2 : 1, kMostTiles = W == 16 ? 8 : 4;
constexpr int kFewRows = W == 16 ? 8 : 6;  // at most so many are multiplied with integers without a panel
constexpr int few_tiles(int rows) { return W == 16 ? (rows <= 4 ? kQuad : 1) : rows <= 2 ? 4 / rows : 1; }
constexpr long kMostChannels = 256;  // of a panel

// What one thread needs to unpack tiles; kept from call to call.
template <class P>
struct Panels {
  std::vector<P> values, widened;
  std::vector<float> scales, minimums;
  Panels() : values(kMostTiles * kMostChannels * kTile), widened(kSharedTiles * kMostChannels * kTile), scales(values.size() / 8), minimums(values.size() / 8) {}
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
      : w_(w), layout_(w), table_(w), x_(x), M_(M), channels_(layout_.channels), group_(w.bits == 0 ? plain_group(w) : w.group),
        num_groups_((channels_ + group_ - 1) / group_), sums_(group_sums(w, layout_, x, M)) {}

  // out[m][0 ... kTile * count) for `count` tiles from `first` on. out: [M] rows, `stride` apart.
  void tiles(long first, long count, float* out, long stride) const {
    if (w_.bits != 0 && M_ <= kFewRows) return few_rows(first, count, out, stride);
    for (long m = 0; m < M_; ++m) std::memset(out + m * stride, 0, sizeof(float) * kTile * count);
    long t = 0;
    if (M_ == 1) {
      for (; t + kMostTiles <= count; t += kMostTiles) all_groups<kMostTiles>(first + t, out + t * kTile, stride);
    }
    for (; t + kSharedTiles <= count; t += kSharedTiles) all_groups<kSharedTiles>(first + t, out + t * kTile, stride);
    for (; t < count; ++t) all_groups<1>(first + t, out + t * kTile, stride);
  }

 private:
  template <int MR = kFewRows>
  void few_rows(long first, long count, float* out, long stride) const {
    if constexpr (MR > 1) {
      if (M_ < MR) return few_rows<MR - 1>(first, count, out, stride);
    }
    constexpr int NT = few_tiles(MR);
    for (long t = first; t < first + count;) {
      const bool whole = t % NT == 0 && t + NT <= first + count;
      float* const place = out + (t - first) * kTile;
      with_bits(w_.bits, [&](auto bits) {
        constexpr int BITS = decltype(bits)::value;
        constexpr auto several = multiply_integers<P, BITS, MR, NT>, one = multiply_integers<P, BITS, MR, 1>;
        (whole ? several : one)(w_, layout_, table_, t, x_, sums_of(0, 0), M_, place, stride);
      });
      t += whole ? NT : 1;
    }
  }

  template <int NT>
  void all_groups(long tile, float* out, long stride) const {
    const long at_once = kMostChannels / group_, whole = channels_ / group_;
    for (long g = 0; g < whole; g += at_once) some_groups<NT>(tile, g, std::min(at_once, whole - g), group_, out, stride);
    if (whole < num_groups_) some_groups<NT>(tile, whole, 1, channels_ - whole * group_, out, stride);
  }

  template <int NT>
  void some_groups(long tile, long g, long num, long group, float* out, long stride) const {
    if (w_.bits != 0) return integer_groups<NT>(tile, g, num, group, out, stride);
    if constexpr (std::is_same_v<P, float>) {
      with_dtype(w_.dtype, [&](auto number) { float_groups<NT, decltype(number)>(tile, g, num, group, out, stride); });
    } else {
      float_groups<NT, P>(tile, g, num, group, out, stride);
    }
  }

  template <int NT, class S>
  void float_groups(long tile, long g, long num, long group, float* out, long stride) const {
    const long size = num * group * kTile;
    Panels<P>& own = Panels<P>::of_this_thread();
    const S* w[NT];
    for (int t = 0; t < NT; ++t) {
      w[t] = panel_of<S>(w_, layout_, tile + t, g * group_, num * group, reinterpret_cast<S*>(own.values.data()) + t * size);
    }
    if constexpr (!std::is_same_v<S, P>) {
      if (M_ > 2 * kMostRows) return widened_groups<NT>(w, g, num, group, out, stride);
    }
    all_rows<NT, kMostRows>([&](auto count, long m, Rows<P> x, float* place) {
      // The last rows find this panel in a cache, and see to the next one.
      const long ahead = m > 0 && m + count == M_ && w_.stride == 0 ? size : 0;
      multiply<P, S, count, NT, false, false>(x, w, nullptr, nullptr, 0, num, group, place, stride, ahead);
    }, g, out, stride);
  }

  // Floats that are stored smaller are widened once for many rows, in each product for a few.
  template <int NT, class S>
  void widened_groups(const S* const* stored, long g, long num, long group, float* out, long stride) const {
    using L = Lane<P>;
    P* const panels = Panels<P>::of_this_thread().widened.data();
    const P* w[NT];
    for (int t = 0; t < NT; ++t) {
      P* const panel = panels + t * num * group * kTile;
      for (long k = 0; k < num * group; ++k) {
        for (long row = 0; row < kTile; row += W) L::store(panel + k * kTile + row, L::of(stored[t], k, row));
      }
      w[t] = panel;
    }
    all_rows<NT, kMostRows>([&](auto count, long, Rows<P> x, float* place) {
      multiply<P, P, count, NT, false, false>(x, w, nullptr, nullptr, 0, num, group, place, stride, 0);
    }, g, out, stride);
  }

  template <int NT>
  void integer_groups(long tile, long g, long num, long group, float* out, long stride) const {
    Panels<P>& own = Panels<P>::of_this_thread();
    const P* w[NT];
    Groups groups[NT];
    for (int t = 0; t < NT; ++t) {
      P* const panel = own.values.data() + t * num * group * kTile;
      float* const scales = own.scales.data() + t * num * kTile;
      float* const minimums = own.minimums.data() + t * num * kTile;
      with_bits(w_.bits, [&](auto bits) { unpack_groups<decltype(bits)::value>(tile + t, g, num, group, panel, scales, minimums); });
      w[t] = panel;
      groups[t] = {scales, minimums};
    }
    all_rows<NT, kMostScaledRows>([&](auto count, long m, Rows<P> x, float* place) {
      const float* sums = sums_of(m, g);
      w_.has_min ? multiply<P, P, count, NT, true, true>(x, w, groups, sums, M_, num, group, place, stride, 0)
                 : multiply<P, P, count, NT, true, false>(x, w, groups, sums, M_, num, group, place, stride, 0);
    }, g, out, stride);
  }

  // The panel of groups [g, g + num), and their scales. What the next one is made of begins to come in.
  template <int BITS>
  void unpack_groups(long tile, long g, long num, long group, P* panel, float* scales, float* minimums) const {
    using L = Lane<P>;
    const Lookup<BITS, P> lookup(table_);
    const long ahead = layout_.tile / num_groups_ * kQuad * num;
    Place place(layout_, tile, g);
    for (long i = 0; i < num; ++i, place.next(), panel += group * kTile, scales += kTile, minimums += kTile) {
      for (long byte = 0; byte < layout_.values; byte += 64) _mm_prefetch(place.values + ahead + byte, _MM_HINT_T0);
      for (long c = 0; c < group; c += kChunk) {
        for (long row = 0; row < kTile; row += W) {
          const Chunk<BITS, P> numbers(place.values + c * (kTile * BITS / kChunk), row, lookup);
          for (int j = 0; j < kChunk / L::channels; ++j) {
            L::store(panel + c * kTile + (j * kTile + row) * L::channels, numbers.lane(j));
          }
        }
      }
      for (long lane = 0; lane < kTile; lane += W) {
        store(scales + lane, scales_of(w_, layout_, place, place.block, lane));
        if (w_.has_min) store(minimums + lane, minimums_of(w_, layout_, place, place.block, lane));
      }
    }
  }

  // body(count, m, x, out) for all rows of x, as many at a time as stay in registers: `count` from m on.
  template <int NT, int MOST, class Body>
  void all_rows(Body body, long g, float* out, long stride) const {
    const long blocks = (M_ + MOST - 1) / MOST;
    for (long b = 0; b < blocks; ++b) {
      const long m = M_ * b / blocks;
      rows<NT <= 2 ? MOST : 1>(static_cast<int>(M_ * (b + 1) / blocks - m), body, g, m, out, stride);
    }
  }

  template <int MR, class Body>
  void rows(int count, Body& body, long g, long m, float* out, long stride) const {
    if constexpr (MR > 1) {
      if (count < MR) return rows<MR - 1>(count, body, g, m, out, stride);
    }
    body(std::integral_constant<int, MR>{}, m, Rows<P>{x_[m] + g * group_, x_.stride}, out + m * stride);
  }

  // The sums of groups from g on, for rows from m on; null without minimums.
  const float* sums_of(long m, long g) const { return sums_.empty() ? nullptr : sums_.data() + g * M_ + m; }

  const ps::Weight& w_;
  const Layout layout_;
  const Table<P> table_;
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
