// RMSNorm and LayerNorm of rows, with the sum into the float32 residual stream in the same pass.
//
//   rms    y = x / sqrt(mean(x^2) + eps) * w                 layer   y = (x - mean(x)) / sqrt(var(x) + eps) * w + b
// Sums     in float64, and so is what becomes of an element until it is rounded once: that costs nothing beside memory
// Traffic  x and the residual once, y and the new residual once; the row itself stays in the first-level cache

#include <vector>

#include "dtypes.h"
#include "kernels.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kNormGrain = 4;  // rows

// The sum over a row of `term` of half a vector: two running sums, and the row's last elements one by one.
template <class Term>
double sum_of(const float* row, long C, Term term) {
  vd low = set(0.0), high = set(0.0);
  long i = 0;
  for (; i + W <= C; i += W) {
    const vf x = load(row + i);
    low = add(low, term(low_half(x)));
    high = add(high, term(high_half(x)));
  }
  double total = sum_of_lanes(low, high), lanes[W / 2];
  for (; i < C; ++i) {
    store(lanes, term(low_half(set(row[i]))));
    total += lanes[0];
  }
  return total;
}

template <class X, class Weight, class Y>
void normed_row(const ps::NormArgs& a, long t, float* row) {
  const X* x = static_cast<const X*>(a.x) + t * a.C;
  const Weight* weight = static_cast<const Weight*>(a.weight);
  const Weight* bias = static_cast<const Weight*>(a.bias);
  Y* y = static_cast<Y*>(a.y) + t * a.C;
  if (a.residual != nullptr) {
    const float* residual = a.residual + t * a.C;
    row = a.new_residual + t * a.C;
    for_vectors(a.C, [&](long c, auto... n) { store(row + c, add(load(residual + c, n...), load(x + c, n...)), n...); });
  } else {
    for_vectors(a.C, [&](long c, auto... n) { store(row + c, load(x + c, n...), n...); });
  }
  const double size = static_cast<double>(a.C);
  const vd mean = set(bias == nullptr ? 0.0 : sum_of(row, a.C, [](vd v) { return v; }) / size);
  const double variance = sum_of(row, a.C, [=](vd v) { return mul(sub(v, mean), sub(v, mean)); }) / size;
  const vd factor = set(1.0 / std::sqrt(variance + a.eps));
  const auto normed = [=](vd v, vd w, vd b) { return fma(mul(sub(v, mean), factor), w, b); };
  for_vectors(a.C, [&](long c, auto... n) {
    const vf v = load(row + c, n...), w = load(weight + c, n...), b = bias == nullptr ? zero() : load(bias + c, n...);
    store(y + c, narrowed(normed(low_half(v), low_half(w), low_half(b)), normed(high_half(v), high_half(w), high_half(b))), n...);
  });
}

}  // namespace

void norm(const ps::NormArgs& a) {
  with_dtype(a.dtype, [&](auto x) {
    with_dtype(a.weight_dtype, [&](auto weight) {
      with_dtype(a.out_dtype, [&](auto y) {
        ps::parallel(a.T, kNormGrain, a.threads, [&](long begin, long end) {
          std::vector<float> row(a.residual == nullptr ? a.C : 0);
          for (long t = begin; t < end; ++t) normed_row<decltype(x), decltype(weight), decltype(y)>(a, t, row.data());
        });
      });
    });
  });
}

}  // namespace PS_ISA
