// Gradients of norms, activations and the loss's logits: one pass over what they read, in float32, rounded once.
//
//   layer   x^ = (x - mean(x)) f,  f = 1 / sqrt(var(x) + eps),  g = dy w:  dx = f (g - mean(g) - x^ mean(g x^))
//   rms     x^ = x f,              f = 1 / sqrt(mean(x^2) + eps):          dx = f (g - x^ mean(g x^))
//           dw = sum of dy x^ over rows,  db = sum of dy
//   silu'   s (1 + x (1 - s)),  s = 1 / (1 + exp(-x))
//   gelu'   s (1 + 2 x z' (1 - s)),  s = 1 / (1 + exp(-2 z)),  z' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
//   logits  softmax (grad + grad_lse) - [id = target] grad, times the cap's slope 1 - tanh(logit / cap)^2
// Sums over rows are made for kGradientRows rows at a time, which the caller adds up: they do not depend on threads.

#include "dtypes.h"
#include "kernels.h"
#include "threads.h"

namespace PS_ISA {
namespace {

// Call body(part, t) for the rows t of each part; parts are shared among threads.
template <class Body>
void by_parts(long T, int threads, Body body) {
  const long parts = (T + ps::kGradientRows - 1) / ps::kGradientRows;
  ps::parallel(parts, 1, threads, [&](long begin, long end) {
    for (long part = begin; part < end; ++part) {
      for (long t = part * ps::kGradientRows; t < std::min(T, (part + 1) * ps::kGradientRows); ++t) body(part, t);
    }
  });
}

inline vf load_same(float x) { return set(x); }
inline vf load_same(float x, long n) {  // 0 behind the end of a row, as what is loaded there
  float lanes[W];
  store(lanes, set(x));
  return load(lanes, n);
}

// The sum of term(c, n...) over a row, in float64.
template <class Term>
float total(long C, Term term) {
  vd low = set(0.0), high = set(0.0);
  for_vectors(C, [&](long c, auto... n) {
    const vf x = term(c, n...);
    low = add(low, low_half(x));
    high = add(high, high_half(x));
  });
  return static_cast<float>(sum_of_lanes(low, high));
}

template <class Weight, class Y>
void norm_row_gradient(const ps::NormGradientArgs& a, long part, long t) {
  const float* x = a.x + t * a.C;
  const Weight* weight = static_cast<const Weight*>(a.weight);
  const Y* dy = static_cast<const Y*>(a.dy) + t * a.C;
  const float* d_residual = a.d_residual == nullptr ? nullptr : a.d_residual + t * a.C;
  float *dx = a.dx + t * a.C, *d_weight = a.d_weight + part * a.C;
  const bool is_layer = a.d_bias != nullptr;
  const float size = static_cast<float>(a.C);
  const float mean = is_layer ? total(a.C, [&](long c, auto... n) { return load(x + c, n...); }) / size : 0.0f;
  const auto at = [&](long c, auto... n) { return sub(load(x + c, n...), load_same(mean, n...)); };
  const float square = total(a.C, [&](long c, auto... n) { return mul(at(c, n...), at(c, n...)); });
  const vf factor = set(1.0f / std::sqrt(square / size + a.eps));
  const auto slope = [&](long c, auto... n) { return mul(load(dy + c, n...), load(weight + c, n...)); };
  const vf mean_slope = set(is_layer ? total(a.C, slope) / size : 0.0f);
  const vf along = set(total(a.C, [&](long c, auto... n) { return mul(slope(c, n...), mul(at(c, n...), factor)); }) / size);
  for_vectors(a.C, [&](long c, auto... n) {
    const vf normed = mul(at(c, n...), factor);
    vf d = mul(factor, sub(sub(slope(c, n...), mean_slope), mul(normed, along)));
    if (d_residual != nullptr) d = add(d, load(d_residual + c, n...));
    store(dx + c, d, n...);
    store(d_weight + c, fma(load(dy + c, n...), normed, load(d_weight + c, n...)), n...);
    if (is_layer) {
      float* d_bias = a.d_bias + part * a.C + c;
      store(d_bias, add(load(d_bias, n...), load(dy + c, n...)), n...);
    }
  });
}

// 1 / (1 + exp(-x)), and 1 minus that without a difference.
inline void sigmoids(vf x, vf& s, vf& rest) {
  const vf e = exp(min(x, sub(zero(), x))), larger = div(set(1.0f), add(set(1.0f), e)), smaller = mul(e, larger);
  s = where_less(x, zero(), smaller, larger);
  rest = where_less(x, zero(), larger, smaller);
}

// An activation and its slope.
inline void silu_with_slope(vf x, vf& y, vf& slope) {
  vf s, rest;
  sigmoids(x, s, rest);
  y = mul(x, s);
  slope = mul(s, fma(x, rest, set(1.0f)));
}

inline void gelu_with_slope(vf x, vf& y, vf& slope) {
  const vf square = min(mul(x, x), set(1e30f));  // else the slope of a large x would be 0 times infinity
  const vf twice_z = mul(mul(set(2 * 0.7978845608028654f), x), fma(set(0.044715f), square, set(1.0f)));
  const vf twice_slope = mul(set(2 * 0.7978845608028654f), fma(set(3 * 0.044715f), square, set(1.0f)));
  vf s, rest;
  sigmoids(twice_z, s, rest);
  y = mul(x, s);
  slope = mul(s, fma(mul(x, twice_slope), rest, set(1.0f)));
}

template <class T>
void activation_row_gradient(const ps::ActivationGradientArgs& a, long part, long t) {
  const bool is_gated = a.kind != ps::kBiasGelu;
  const T* x = static_cast<const T*>(a.x) + t * a.x_stride;
  const T* bias = static_cast<const T*>(a.bias);
  const T* dy = static_cast<const T*>(a.dy) + t * a.F;
  T* dx = static_cast<T*>(a.dx) + t * (is_gated ? 2 * a.F : a.F);
  for_vectors(a.F, [&](long f, auto... n) {
    const vf u = bias == nullptr ? load(x + f, n...) : add(load(x + f, n...), load(bias + f, n...));
    const vf d = load(dy + f, n...);
    vf y, slope;
    a.kind == ps::kGatedSilu ? silu_with_slope(u, y, slope) : gelu_with_slope(u, y, slope);
    if (is_gated) {
      store(dx + f, mul(mul(d, load(x + a.F + f, n...)), slope), n...);
      store(dx + a.F + f, mul(d, y), n...);
      return;
    }
    const vf gradient = mul(d, slope);
    store(dx + f, gradient, n...);
    if (a.d_bias != nullptr) {
      float* d_bias = a.d_bias + part * a.F + f;
      store(d_bias, add(load(d_bias, n...), gradient), n...);
    }
  });
}

// Of `ids` from id on, and up to W rows from t on, both as they lie and turned around.
template <class T, class... N>
void logit_block_gradient(const ps::LogitGradientArgs& a, long id, long ids, long t, N... n) {
  const vf lse = load(a.lse + t, n...), grad = load(a.grad + t, n...), share = add(grad, load(a.grad_lse + t, n...));
  const vf targets = load(a.targets + t, n...);
  alignas(64) float block[W][W] = {}, turned[W][W];
  for (long i = 0; i < ids; ++i) {
    const vf number = set(static_cast<float>(id + i));
    vf logit = load(a.logits + (id + i) * a.T + t, n...), slope = set(1.0f);
    if (a.soft_cap != 0.0f) {
      const vf bent = tanh(div(logit, set(a.soft_cap)));
      logit = mul(set(a.soft_cap), bent);
      slope = sub(slope, mul(bent, bent));
    }
    const vf others = mul(exp(sub(logit, lse)), share);
    const vf gradient = where_less(targets, number, others, where_less(number, targets, others, sub(others, grad)));
    store(block[i], mul(gradient, slope));
    store(static_cast<T*>(a.gradients) + (id + i) * a.T + t, load(block[i]), n...);
  }
  turn_words(block, sizeof block[0], turned, sizeof turned[0]);
  for (long row = t; row < std::min(a.T, t + W); ++row) {
    T* const to = static_cast<T*>(a.turned) + row * a.V + id;
    ids == W ? store(to, load(turned[row - t])) : store(to, load(turned[row - t]), ids);
  }
}

}  // namespace

void norm_gradient(const ps::NormGradientArgs& a) {
  with_dtype(a.weight_dtype, [&](auto weight) {
    with_dtype(a.dy_dtype, [&](auto y) {
      by_parts(a.T, a.threads, [&](long part, long t) { norm_row_gradient<decltype(weight), decltype(y)>(a, part, t); });
    });
  });
}

void activation_gradient(const ps::ActivationGradientArgs& a) {
  with_dtype(a.dtype, [&](auto x) {
    by_parts(a.T, a.threads, [&](long part, long t) { activation_row_gradient<decltype(x)>(a, part, t); });
  });
}

void logit_gradient(const ps::LogitGradientArgs& a) {
  with_dtype(a.dtype, [&](auto x) {
    ps::parallel(a.V, W, a.threads, [&](long begin, long end) {
      for (long id = begin; id < end; id += W) {
        for_vectors(a.T, [&](long t, auto... n) {
          logit_block_gradient<decltype(x)>(a, id, std::min<long>(W, end - id), t, n...);
        });
      }
    });
  });
}

}  // namespace PS_ISA
