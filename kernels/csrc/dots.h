// Dot products of rows with rows that lie as they are in memory: attention's scores, whose keys are in a cache.
//
// Bits    A dot product runs over K in ascending order, W floats (2 W bfloat16) at a time, into one vector whose lanes
//         are added by `sums`. How many rows share a tile does not enter it.
// Shapes  MR rows of x times NR rows of w, each of K elements

#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

namespace PS_ISA {

template <class T>
struct Step {  // float32, or float16 widened to it
  static constexpr long size = W;
  using vector = vf;
  static vector load(const T* p) { return PS_ISA::load(p); }
  static vector load(const T* p, long n) { return PS_ISA::load(p, n); }
  static vf dot(vf acc, vector a, vector b) { return fma(a, b, acc); }
};
template <>
struct Step<bf16> {
  static constexpr long size = 2 * W;
  using vector = vi;
  static vector load(const bf16* p) { return load_pairs(p); }
  static vector load(const bf16* p, long n) { return load_pairs(p, n); }
  static vf dot(vf acc, vector a, vector b) { return dot_pairs(acc, a, b); }
};

// out[m * NR + n] = x[m] . w[n]
template <class T, int MR, int NR>
inline void dot_tile(const T* const x[MR], const T* const w[NR], long K, float* out) {
  using S = Step<T>;
  constexpr int count = MR * NR, padded = (count + W - 1) / W * W;
  vf acc[padded];
  for (int i = 0; i < padded; ++i) acc[i] = zero();
  long k = 0;
  for (; k + S::size <= K; k += S::size) {
    typename S::vector xs[MR];
    for (int m = 0; m < MR; ++m) xs[m] = S::load(x[m] + k);
    for (int n = 0; n < NR; ++n) {
      const typename S::vector ws = S::load(w[n] + k);
      for (int m = 0; m < MR; ++m) acc[m * NR + n] = S::dot(acc[m * NR + n], xs[m], ws);
    }
  }
  if (k < K) {
    typename S::vector xs[MR];
    for (int m = 0; m < MR; ++m) xs[m] = S::load(x[m] + k, K - k);
    for (int n = 0; n < NR; ++n) {
      const typename S::vector ws = S::load(w[n] + k, K - k);
      for (int m = 0; m < MR; ++m) acc[m * NR + n] = S::dot(acc[m * NR + n], xs[m], ws);
    }
  }
  alignas(64) float result[padded];
  for (int i = 0; i < padded; i += W) store(result + i, sums(acc + i));
  for (int i = 0; i < count; ++i) out[i] = result[i];
}

constexpr int kRows = 4;  // most rows of x in a tile, which has as many rows of w as make W sums

// emit(m, n, x_m . w_n) for all rows of x and of w. x_row and w_row give a row's address.
template <class T, class XRow, class WRow, class Emit>
inline void dot_rows(long num_x, long num_w, long K, XRow x_row, WRow w_row, Emit emit) {
  const auto against_all = [&](auto mr, long m) {
    constexpr int MR = decltype(mr)::value, NR = W / MR;
    const T* xs[MR];
    for (int i = 0; i < MR; ++i) xs[i] = x_row(m + i);
    for (long n = 0; n < num_w; n += NR) {
      const T* ws[NR];
      float out[MR * NR];
      for (int j = 0; j < NR; ++j) ws[j] = w_row(std::min(n + j, num_w - 1));
      dot_tile<T, MR, NR>(xs, ws, K, out);
      const int count = static_cast<int>(std::min<long>(NR, num_w - n));
      for (int i = 0; i < MR; ++i) {
        for (int j = 0; j < count; ++j) emit(m + i, n + j, out[i * NR + j]);
      }
    }
  };
  using std::integral_constant;
  long m = 0;
  for (; m + kRows <= num_x; m += kRows) against_all(integral_constant<int, kRows>{}, m);
  switch (num_x - m) {
    case 3: return against_all(integral_constant<int, 3>{}, m);
    case 2: return against_all(integral_constant<int, 2>{}, m);
    case 1: return against_all(integral_constant<int, 1>{}, m);
  }
}

}  // namespace PS_ISA
