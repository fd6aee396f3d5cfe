// A decoder's forward pass over the paged cache: every layer's kernels one after another, in one call.
//
// How      what polyserve/model/decoder.py says, with the same kernels: the bits are those of its operations called one by
//          one. Small steps cost less this way than Python needs to call them.
// Memory   one workspace a thread, as large as the largest step it has computed
// Shapes   T tokens   C hidden size   F mlp size   Hq, Hkv heads of size D

#include <vector>

#include "dtypes.h"
#include "kernels.h"

namespace PS_ISA {
namespace {

// Pieces of the workspace, each at a cache line.
class Workspace {
 public:
  explicit Workspace(std::vector<uint8_t>& memory) : memory_(memory) {}
  // The place of n elements; memory is there after `take`.
  long piece(long n, long bytes_each) {
    const long place = size_;
    size_ += (n * bytes_each + 63) / 64 * 64;
    return place;
  }
  void take() {
    if (static_cast<long>(memory_.size()) < size_ + 64) memory_.resize(size_ + 64);
    base_ = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64);
  }
  uint8_t* operator[](long place) const { return base_ + place; }

 private:
  std::vector<uint8_t>& memory_;
  uint8_t* base_ = nullptr;
  long size_ = 0;
};

class Pass {
 public:
  Pass(const ps::DecoderArgs& args, std::vector<uint8_t>& memory) : a(args), element_(bytes_of(a.dtype)), work_(memory) {
    const long T = a.T, heads = a.Hq + 2 * a.Hkv;
    const long residual = work_.piece(T * a.C, 4), x = work_.piece(T * a.C, element_), update = work_.piece(T * a.C, element_);
    const long wide = work_.piece(T * a.C, 4), qkv = work_.piece(T * heads * a.D, element_);
    const long normed = work_.piece(2 * T * (a.Hq + a.Hkv) * a.D, element_), q = work_.piece(T * a.Hq * a.D, element_);
    const long attended = work_.piece(T * a.Hq * a.D, element_), up = work_.piece(2 * T * a.F, element_);
    const long active = work_.piece(T * a.F, element_), angles = work_.piece(T * a.R, 4);
    work_.take();
    residual_ = reinterpret_cast<float*>(work_[residual]), x_ = work_[x], update_ = work_[update];
    wide_ = reinterpret_cast<float*>(work_[wide]), qkv_ = work_[qkv], normed_ = work_[normed], q_ = work_[q];
    attended_ = work_[attended], up_ = work_[up], active_ = work_[active];
    cos_ = reinterpret_cast<float*>(work_[angles]), sin_ = cos_ + T * a.R / 2;
  }

  void run() {
    embed();
    const void* update = nullptr;  // what the layer before still has to add to the residual stream
    for (const ps::DecoderLayer* layer = a.layers; layer < a.layers + a.num_layers; ++layer) {
      add_norm(layer->attention_norm, update, update_dtype_, x_);
      attend(*layer);
      update = after(layer->attention_post_norm);
      add_norm(layer->mlp_norm, update, update_dtype_, x_);
      feed_forward(*layer);
      update = after(layer->mlp_post_norm);
    }
    add_norm(a.norm, update, update_dtype_, a.hidden);
  }

 private:
  void embed() {
    unpack({a.words.weights, a.token_ids, residual_, a.words.num_weights, a.T, a.threads});
    with_dtype(a.dtype, [&](auto number) {
      const auto* table = static_cast<const decltype(number)*>(a.position_table);
      for (long t = 0; t < a.T; ++t) {
        float* row = residual_ + t * a.C;
        const auto* position = table == nullptr ? nullptr : table + a.positions[t] * a.C;
        for_vectors(a.C, [&](long c, auto... n) {
          vf x = mul(load(row + c, n...), set(a.words_scale));
          if (position != nullptr) x = add(x, mul(load(position + c, n...), set(a.position_scale)));
          store(row + c, x, n...);
        });
      }
    });
    if (a.embedding_norm.weight != nullptr) apply(a.embedding_norm, residual_, ps::kFloat32, a.T, a.C, residual_, ps::kFloat32);
  }

  // y = norm(x), rows of `size`
  void apply(const ps::NormWeights& weights, const void* x, int32_t dtype, long rows, long size, void* y, int32_t out_dtype) {
    norm({x, nullptr, nullptr, weights.weight, weights.bias, y, rows, size, a.eps, dtype, ps::kFloat32, out_dtype, a.threads});
  }

  // The residual stream grows by the update, if there is one; y = norm of it.
  void add_norm(const ps::NormWeights& weights, const void* update, int32_t dtype, void* y) {
    if (update == nullptr) return apply(weights, residual_, ps::kFloat32, a.T, a.C, y, a.dtype);
    norm({update, residual_, residual_, weights.weight, weights.bias, y, a.T, a.C, a.eps, dtype, ps::kFloat32, a.dtype, a.threads});
  }

  // An update after the norm that a sandwich has there.
  const void* after(const ps::NormWeights& weights) {
    update_dtype_ = weights.weight == nullptr ? a.dtype : ps::kFloat32;
    if (weights.weight == nullptr) return update_;
    apply(weights, update_, a.dtype, a.T, a.C, wide_, ps::kFloat32);
    return wide_;
  }

  void product(const ps::LinearWeights& linear, const void* x, long K, void* y, bool with_bias = true) {
    matmul({x, linear.weights, with_bias ? linear.bias : nullptr, y, a.T, linear.N, K, K, linear.num_weights, a.dtype, a.dtype, a.threads});
  }

  // Heads of q or k, gathered from the rows of qkv and normed each alone. Returns where they are.
  const uint8_t* normed_heads(const ps::NormWeights& weights, long first, long heads, uint8_t* gathered) {
    const long row = heads * a.D * element_, stride = (a.Hq + 2 * a.Hkv) * a.D * element_;
    uint8_t* y = gathered + a.T * row;
    for (long t = 0; t < a.T; ++t) std::memcpy(gathered + t * row, qkv_ + t * stride + first * a.D * element_, row);
    apply(weights, gathered, a.dtype, a.T * heads, a.D, y, a.dtype);
    return y;
  }

  void attend(const ps::DecoderLayer& layer) {
    product(layer.qkv, x_, a.C, qkv_);
    const long D = a.D, token = (a.Hq + 2 * a.Hkv) * D;
    const uint8_t *q = qkv_, *k = qkv_ + a.Hq * D * element_, *v = k + a.Hkv * D * element_;
    long q_token = token, k_token = token;
    if (layer.q_norm.weight != nullptr) {
      q = normed_heads(layer.q_norm, 0, a.Hq, normed_), q_token = a.Hq * D;
      k = normed_heads(layer.k_norm, a.Hq, a.Hkv, normed_ + 2 * a.T * a.Hq * D * element_), k_token = a.Hkv * D;
    }
    if (layer.cos != table_) gather_angles(layer);
    const bool turns = layer.cos != nullptr;
    rotary({q, k, v, turns ? cos_ : nullptr, turns ? sin_ : nullptr, q_, nullptr, layer.k_cache, layer.v_cache, layer.k_scales,
            layer.v_scales, a.slots, a.T, a.Hq, a.Hkv, D, turns ? a.R : 0, a.num_slots, q_token, D, k_token, D, token, D,
            a.interleaved, a.dtype, a.cache_dtype, a.threads});
    attention({q_, layer.k_cache, layer.v_cache, layer.k_scales, layer.v_scales, a.block_tables, a.seq_lens, a.cu_seqlens_q,
               a.alibi_slopes, attended_, nullptr, a.S, a.Hq, a.Hkv, D, a.max_blocks, a.block_size, layer.window, a.Hq * D, D,
               a.Hkv * D, D, a.Hkv * D, D, a.scale, a.soft_cap, a.dtype, a.cache_dtype, a.threads});
    product(layer.out, attended_, a.Hq * D, update_);
  }

  void gather_angles(const ps::DecoderLayer& layer) {
    const long half = a.R / 2;
    for (long t = 0; t < a.T; ++t) {
      std::memcpy(cos_ + t * half, layer.cos + a.positions[t] * half, half * sizeof(float));
      std::memcpy(sin_ + t * half, layer.sin + a.positions[t] * half, half * sizeof(float));
    }
    table_ = layer.cos;
  }

  void feed_forward(const ps::DecoderLayer& layer) {
    const bool gelu = a.activation == ps::kBiasGelu;  // which adds the bias
    product(layer.up, x_, a.C, up_, !gelu);
    activation({up_, gelu ? layer.up.bias : nullptr, active_, a.T, a.F, layer.up.N, a.activation, a.dtype, a.threads});
    product(layer.down, active_, a.F, update_);
  }

  const ps::DecoderArgs& a;
  const long element_;  // bytes
  Workspace work_;
  float *residual_, *wide_, *cos_, *sin_;
  uint8_t *x_, *update_, *qkv_, *normed_, *q_, *attended_, *up_, *active_;
  const float* table_ = nullptr;  // whose angles are gathered
  int32_t update_dtype_ = ps::kFloat32;
};

}  // namespace

void decoder(const ps::DecoderArgs& a) {
  static thread_local std::vector<uint8_t> memory;
  Pass(a, memory).run();
}

}  // namespace PS_ISA
