// Gradients of causal attention over packed sequences, from its results and their log-sum-exps.
//
//   P = exp(s - lse),  dP = dO V^T,  dS = P (dP - delta),  delta = sum of dO O over a row;  s scaled, with cap and ALiBi
//   dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO;  with a cap, dS is times 1 - tanh^2
// A task is one query head of one sequence, from its first key to its last, so that nothing depends on threads: blocks of
// kBlock keys, and for each the blocks of queries that see it. All in float32, rounded once.
// Shapes   L tokens of a sequence   D of a head, filled up with zeros to whole vectors   rows behind L are zeros too
// Source   https://arxiv.org/abs/2205.14135, appendix B.4

#include <vector>

#include "dots.h"
#include "dtypes.h"
#include "kernels.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kBlock = 64;
constexpr int kVectors = W == 16 ? 4 : 2;  // of a row in registers, for 6 rows at a time

// C [R, N W] = A B, or + A B where `adds`.  A(r, k) is a[r * row + k * step];  B [K, ld], C [R, ld_c]
template <int R, int N>
inline void few_rows(const float* a, long row, long step, const float* b, long ld, float* c, long ld_c, long K, bool adds) {
  vf sums[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) sums[r][n] = adds ? load(c + r * ld_c + n * W) : zero();
  }
  for (long k = 0; k < K; ++k) {
    vf columns[N];
    for (int n = 0; n < N; ++n) columns[n] = load(b + k * ld + n * W);
    for (int r = 0; r < R; ++r) {
      const vf x = set(a[r * row + k * step]);
      for (int n = 0; n < N; ++n) sums[r][n] = fma(x, columns[n], sums[r][n]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) store(c + r * ld_c + n * W, sums[r][n]);
  }
}

template <int N>
inline void columns(const float* a, long row, long step, const float* b, long ld, float* c, long ld_c, long K, bool adds) {
  long r = 0;
  for (; r + 6 <= kBlock; r += 6) few_rows<6, N>(a + r * row, row, step, b, ld, c + r * ld_c, ld_c, K, adds);
  for (; r < kBlock; r += 2) few_rows<2, N>(a + r * row, row, step, b, ld, c + r * ld_c, ld_c, K, adds);
}

// The same for kBlock rows and any number of whole vectors.
void product(const float* a, long row, long step, const float* b, long ld, float* c, long ld_c, long width, long K, bool adds) {
  long n = 0;
  for (; n + kVectors * W <= width; n += kVectors * W) columns<kVectors>(a, row, step, b + n, ld, c + n, ld_c, K, adds);
  for (; n < width; n += W) columns<1>(a, row, step, b + n, ld, c + n, ld_c, K, adds);
}

// What a task needs, all of it filled up: rows of queries and of a block of keys.
struct Space {
  long width;  // D in whole vectors
  std::vector<float> q, d_out, dq, lse, delta;
  std::vector<float> k, v_turned, dk, dv, p, ds;

  Space(long L, long D) : width((D + W - 1) / W * W) {
    const long rows = (L + kBlock - 1) / kBlock * kBlock;
    for (auto* x : {&q, &d_out, &dq}) x->assign(rows * width, 0.0f);
    for (auto* x : {&lse, &delta}) x->assign(rows, 0.0f);
    for (auto* x : {&k, &v_turned, &dk, &dv}) x->assign(kBlock * width, 0.0f);
    for (auto* x : {&p, &ds}) x->assign(kBlock * kBlock, 0.0f);
  }
};

template <class T>
inline void widen(const T* from, float* to, long D) {
  for_vectors(D, [&](long d, auto... n) { store(to + d, load(from + d, n...), n...); });
}

template <class T>
inline void narrow(const float* from, T* to, long D) {
  for_vectors(D, [&](long d, auto... n) { store(to + d, load(from + d, n...), n...); });
}

template <class T>
void read_queries(const ps::AttentionGradientArgs& a, Space& s, long first, long L, long head) {
  for (long i = 0; i < L; ++i) {
    const long token = first + i, at = (token * a.Hq + head) * a.D;
    const T *out = static_cast<const T*>(a.out) + at, *d_out = static_cast<const T*>(a.d_out) + at;
    widen(static_cast<const T*>(a.q) + token * a.q_token + head * a.q_head, &s.q[i * s.width], a.D);
    widen(d_out, &s.d_out[i * s.width], a.D);
    vf sum_of = zero();
    for_vectors(a.D, [&](long d, auto... n) { sum_of = fma(load(d_out + d, n...), load(out + d, n...), sum_of); });
    s.delta[i] = sum(sum_of);
    s.lse[i] = a.lse[token * a.Hq + head];
  }
}

template <class T>
void read_keys(const ps::AttentionGradientArgs& a, Space& s, long first, long num, long head) {
  std::vector<float> value(s.width, 0.0f);
  for (long j = 0; j < kBlock; ++j) {
    float* const key = &s.k[j * s.width];
    if (j < num) {
      widen(static_cast<const T*>(a.k) + (first + j) * a.k_token + head * a.k_head, key, a.D);
      widen(static_cast<const T*>(a.v) + (first + j) * a.v_token + head * a.v_head, value.data(), a.D);
    } else {
      std::fill(key, key + s.width, 0.0f);
      std::fill(value.begin(), value.end(), 0.0f);
    }
    for (long d = 0; d < s.width; ++d) s.v_turned[d * kBlock + j] = value[d];
  }
}

// Products of queries from i and keys from j in s.p: as the forward pass has them, or exp(s - lse) would be off by more
// than rounding where they are in the hundreds.
template <class T>
void scores_of(const ps::AttentionGradientArgs& a, Space& s, long first, long L, long i, long j, long head) {
  const auto row_of = [&](const void* x, long number, long token, long offset) {
    return static_cast<const T*>(x) + (first + number) * token + offset;
  };
  const long q_offset = head * a.q_head, k_offset = head / (a.Hq / a.Hkv) * a.k_head;
  dot_rows<T>(
      std::min(kBlock, L - i), std::min(kBlock, L - j), a.D, [&](long row) { return row_of(a.q, i + row, a.q_token, q_offset); },
      [&](long key) { return row_of(a.k, j + key, a.k_token, k_offset); },
      [&](long row, long key, float product) { s.p[row * kBlock + key] = product; });
}

// Products in s.p and slopes in s.ds of queries from i and keys from j become P and scale dS.
void to_gradients(const ps::AttentionGradientArgs& a, Space& s, long L, long i, long j, float slope) {
  alignas(64) float numbers[W];
  for (int n = 0; n < W; ++n) numbers[n] = static_cast<float>(n);
  const float window = a.window == 0 ? std::numeric_limits<float>::infinity() : static_cast<float>(a.window);
  const vf cap = set(a.soft_cap), scale = set(a.scale);
  const long rows = std::min(kBlock, L - i);
  std::fill(s.p.begin() + rows * kBlock, s.p.end(), 0.0f);
  std::fill(s.ds.begin() + rows * kBlock, s.ds.end(), 0.0f);
  for (long row = 0; row < rows; ++row) {
    const vf lse = set(s.lse[i + row]), delta = set(s.delta[i + row]);
    for (long column = 0; column < kBlock; column += W) {
      float* const p = &s.p[row * kBlock + column];
      float* const ds = &s.ds[row * kBlock + column];
      const vf distance = sub(set(static_cast<float>(i + row - j - column)), load(numbers));
      vf score = mul(load(p), scale), bend = scale;
      if (a.soft_cap != 0.0f) {
        const vf bent = tanh(div(score, cap));
        score = mul(cap, bent);
        bend = mul(scale, sub(set(1.0f), mul(bent, bent)));
      }
      score = sub(score, mul(set(slope), distance));
      vf seen = where_less(distance, zero(), zero(), exp(sub(score, lse)));
      seen = where_less(distance, set(window), seen, zero());
      store(p, seen);
      store(ds, mul(mul(seen, sub(load(ds), delta)), bend));
    }
  }
}

template <class T, class KeyGradient>
void gradients_of_head(const ps::AttentionGradientArgs& a, long sequence, long head) {
  const long first = a.cu_seqlens[sequence], L = a.cu_seqlens[sequence + 1] - first;
  const float slope = a.alibi_slopes == nullptr ? 0.0f : a.alibi_slopes[head];
  Space s(L, a.D);
  read_queries<T>(a, s, first, L, head);
  for (long j = 0; j < L; j += kBlock) {
    const long num = std::min(kBlock, L - j);
    read_keys<T>(a, s, first + j, num, head / (a.Hq / a.Hkv));
    const long end = a.window == 0 ? L : std::min(L, j + num - 1 + a.window);
    for (long i = j; i < end; i += kBlock) {
      const float *q = &s.q[i * s.width], *d_out = &s.d_out[i * s.width];
      const bool adds = i > j;
      scores_of<T>(a, s, first, L, i, j, head);
      product(d_out, s.width, 1, s.v_turned.data(), kBlock, s.ds.data(), kBlock, kBlock, s.width, false);
      to_gradients(a, s, L, i, j, slope);
      product(s.p.data(), 1, kBlock, d_out, s.width, s.dv.data(), s.width, s.width, kBlock, adds);
      product(s.ds.data(), 1, kBlock, q, s.width, s.dk.data(), s.width, s.width, kBlock, adds);
      product(s.ds.data(), kBlock, 1, s.k.data(), s.width, &s.dq[i * s.width], s.width, s.width, kBlock, true);
    }
    for (long row = 0; row < num; ++row) {
      const long at = ((first + j + row) * a.Hq + head) * a.D;
      narrow(&s.dk[row * s.width], static_cast<KeyGradient*>(a.dk) + at, a.D);
      narrow(&s.dv[row * s.width], static_cast<KeyGradient*>(a.dv) + at, a.D);
    }
  }
  for (long i = 0; i < L; ++i) narrow(&s.dq[i * s.width], static_cast<T*>(a.dq) + ((first + i) * a.Hq + head) * a.D, a.D);
}

}  // namespace

void attention_gradient(const ps::AttentionGradientArgs& a) {
  with_dtype(a.dtype, [&](auto x) {
    with_dtype(a.key_gradient_dtype, [&](auto key) {
      ps::parallel(a.S * a.Hq, 1, a.threads, [&](long begin, long end) {
        for (long task = begin; task < end; ++task) {
          gradients_of_head<decltype(x), decltype(key)>(a, task / a.Hq, task % a.Hq);
        }
      });
    });
  });
}

}  // namespace PS_ISA
