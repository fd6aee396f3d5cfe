// RMSNorm and LayerNorm of rows, with the sum into the float32 residual stream in the same pass.
//
//   rms    y = x / sqrt(mean(x^2) + eps) * w                 layer   y = (x - mean(x)) / sqrt(var(x) + eps) * w + b
// Traffic  x and the residual once, y and the new residual once; the row itself stays in the first-level cache

#include <vector>

#include "dtypes.h"
#include "kernels.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kNormGrain = 4;  // rows

// The sum over a row of `term` of each vector: four running sums, added in one order.
template <class Term>
float sum_of(const float* row, long C, Term term) {
  vf a = zero(), b = zero(), c = zero(), d = zero();
  long i = 0;
  for (; i + 4 * W <= C; i += 4 * W) {
    a = add(a, term(load(row + i)));
    b = add(b, term(load(row + i + W)));
    c = add(c, term(load(row + i + 2 * W)));
    d = add(d, term(load(row + i + 3 * W)));
  }
  for (; i + W <= C; i += W) a = add(a, term(load(row + i)));
  float total = sum(add(add(a, b), add(c, d)));
  for (; i < C; ++i) total += first_lane(term(set(row[i])));
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
  const float size = static_cast<float>(a.C);
  float mean = 0, squares;
  if (bias == nullptr) {
    squares = sum_of(row, a.C, [](vf v) { return mul(v, v); });
  } else {
    mean = sum_of(row, a.C, [](vf v) { return v; }) / size;
    squares = sum_of(row, a.C, [m = set(mean)](vf v) { return mul(sub(v, m), sub(v, m)); });
  }
  const vf m = set(mean), factor = set(1.0f / std::sqrt(squares / size + a.eps));
  for_vectors(a.C, [&](long c, auto... n) {
    const vf v = mul(mul(sub(load(row + c, n...), m), factor), load(weight + c, n...));
    store(y + c, bias == nullptr ? v : add(v, load(bias + c, n...)), n...);
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
