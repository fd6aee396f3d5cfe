// Activations of rows, in float32, one rounding at the end.
//
//   silu(x) = x / (1 + exp(-x))        gelu(x) = x / (1 + exp(-2 z)),  z = sqrt(2 / pi) (x + 0.044715 x^3)
// Source   https://arxiv.org/abs/1606.08415, section 2;  https://arxiv.org/abs/2002.05202

#include "dtypes.h"
#include "kernels.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kActivationGrain = 4;  // rows

inline vf over_one_plus_exp(vf x, vf y) { return div(x, add(set(1.0f), exp(y))); }

inline vf silu(vf x) { return over_one_plus_exp(x, sub(zero(), x)); }

inline vf gelu(vf x) {
  const vf cube = mul(mul(x, x), x);
  return over_one_plus_exp(x, mul(set(-2 * 0.7978845608028654f), add(x, mul(set(0.044715f), cube))));
}

template <class T>
void activated_row(const ps::ActivationArgs& a, long t) {
  const T* x = static_cast<const T*>(a.x) + t * a.x_stride;
  const T* bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y) + t * a.F;
  for_vectors(a.F, [&](long f, auto... n) {
    const vf u = load(x + f, n...);
    if (a.kind == ps::kBiasGelu) {
      store(y + f, gelu(bias == nullptr ? u : add(u, load(bias + f, n...))), n...);
    } else {
      store(y + f, mul(a.kind == ps::kGatedSilu ? silu(u) : gelu(u), load(x + a.F + f, n...)), n...);
    }
  });
}

}  // namespace

void activation(const ps::ActivationArgs& a) {
  with_dtype(a.dtype, [&](auto x) {
    ps::parallel(a.T, kActivationGrain, a.threads, [&](long begin, long end) {
      for (long t = begin; t < end; ++t) activated_row<decltype(x)>(a, t);
    });
  });
}

}  // namespace PS_ISA
