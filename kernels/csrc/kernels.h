// The kernels' arguments, and the table that every instruction set fills in.
//
// Sizes and strides are in elements; the last dimension of a tensor is contiguous. What arguments mean and which are
// allowed is in polyserve_kernels/ops.py, which has checked them all. polyserve_kernels/cpu/library.py has these structs
// again: a change here is a change there.

#pragma once

#include <cstdint>

namespace ps {

enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3, kFloat8 = 4 };

constexpr int64_t kVocabTile = 1024;  // ids of one tile of the head
constexpr int64_t kKeyTile = 128;     // keys of one partial of attention, at absolute positions

// A weight [N, K], or some of its rows, as weight.h describes it.
struct Weight {
  const void* data;
  int64_t rows, channels;  // N, K
  int64_t stride;          // of floats that lie as torch keeps them; 0: packed
  int32_t dtype;           // of floats
  int32_t bits;            // of an integer, 0: floats
  int32_t offset;          // what is subtracted from an integer as it is stored
  int32_t group, block;    // channels that share a scale, and that lie together; block is a multiple of group
  int32_t scale_dtype, has_min, two_level;
};

// Write rows of a checkpoint into a packed weight, whose memory was zeros.
struct PackArgs {
  const Weight* weight;
  const void* source;
  const int64_t* rows;  // [num_rows], the weight's row for each row of the source
  int64_t num_rows, first_channel, num_channels;
  int64_t row_stride, channel_stride;  // of floats and integers, in elements; of GGUF blocks row_stride is in bytes
  const void *scales, *minimums;       // [rows, groups] of the weight's scale_dtype, for integers
  int64_t scale_row, scale_group;      // their strides
  int32_t source_dtype;                // of floats
  int32_t gguf_type;                   // as GGUF numbers them; -1: integers, -2: floats
  int32_t threads;
};

// Rows of a weight as they are multiplied, in float32: (integer - offset) * scale + minimum, or the float.
struct UnpackArgs {
  const Weight* weights;
  const int64_t* rows;  // [num_rows]
  float* y;             // [num_rows, K], contiguous
  int64_t num_weights, num_rows;
  int32_t threads;
};

struct MatmulArgs {
  const void* x;          // [T, K]
  const Weight* weights;  // [num_weights], whose rows follow each other: N together
  const void* bias;       // [N] or null
  void* y;                // [T, N], contiguous
  int64_t T, N, K, x_stride, num_weights;
  int32_t dtype, out_dtype, threads;
};

struct NormArgs {
  const void* x;          // [T, C], contiguous
  const float* residual;  // [T, C] or null
  float* new_residual;    // [T, C], residual + x; null with residual
  const void* weight;     // [C]
  const void* bias;       // [C], or null: RMSNorm
  void* y;                // [T, C], contiguous
  int64_t T, C;
  float eps;
  int32_t dtype, weight_dtype, out_dtype, threads;
};

enum Activation : int32_t { kBiasGelu = 0, kGatedSilu = 1, kGatedGelu = 2 };

struct ActivationArgs {
  const void* x;     // [T, F], or [T, 2 F] with a gate
  const void* bias;  // [F] or null
  void* y;           // [T, F], contiguous
  int64_t T, F, x_stride;
  int32_t kind, dtype, threads;
};

constexpr int64_t kGradientRows = 16;  // over which a part of a sum over rows runs

struct NormGradientArgs {
  const float* x;                 // [T, C], what was normed, contiguous
  const void *weight, *dy;        // [C], [T, C], contiguous
  const float* d_residual;        // [T, C] or null: what else x's gradient consists of
  float* dx;                      // [T, C]
  float *d_weight, *d_bias;       // [parts, C], zeros; d_bias null: RMSNorm
  int64_t T, C;
  float eps;
  int32_t weight_dtype, dy_dtype, threads;
};

struct ActivationGradientArgs {
  const void *x, *bias, *dy;  // x and bias as in ActivationArgs, dy [T, F], contiguous
  void* dx;                   // as x, contiguous
  float* d_bias;              // [parts, F], zeros, or null
  int64_t T, F, x_stride;
  int32_t kind, dtype, threads;
};

struct AttentionGradientArgs {
  const void *q, *k, *v;         // [T, Hq, D], [T, Hkv, D], with the strides below
  const void *out, *d_out;       // [T, Hq, D], contiguous
  const float* lse;              // [T, Hq], contiguous
  const int32_t* cu_seqlens;     // [S + 1]
  const float* alibi_slopes;     // [Hq] or null
  void *dq, *dk, *dv;            // [T, Hq, D], contiguous: keys and values have one for each query head
  int64_t S, Hq, Hkv, D, window;  // window 0: none
  int64_t q_token, q_head, k_token, k_head, v_token, v_head;
  float scale, soft_cap;         // soft_cap 0: none
  int32_t dtype, key_gradient_dtype, threads;
};

// Of the logits [V, T] of some ids, contiguous.
struct LogitGradientArgs {
  const float *logits, *lse, *grad, *grad_lse, *targets;  // the others [T]; targets count from the first id
  void *gradients, *turned;                               // [V, T] and [T, V] of the dtype
  int64_t V, T;
  float soft_cap;  // 0: none
  int32_t dtype, threads;
};

struct RotaryArgs {
  const void *q, *k, *v;     // [T, Hq, D], [T, Hkv, D], [T, Hkv, D]; v null: only rotate
  const float *cos, *sin;    // [T, R / 2], contiguous, or null: no rotation
  void *q_out, *k_out;       // contiguous; k_out null where k goes into the cache
  void *k_cache, *v_cache;   // [slots, Hkv, D], contiguous
  float *k_scales, *v_scales;  // [slots, Hkv] for int8 and float8, else null
  const int64_t* slots;      // [T], -1: nothing is written
  int64_t T, Hq, Hkv, D, R, num_slots;
  int64_t q_token, q_head, k_token, k_head, v_token, v_head;  // strides
  int32_t interleaved, dtype, cache_dtype, threads;
};

struct AttentionArgs {
  const void* q;                  // [T, Hq, D]
  const void *k, *v;              // [T or slots, Hkv, D]
  const float *k_scales, *v_scales;
  const int32_t* block_tables;    // [S, max_blocks], or null: keys lie where queries do
  const int32_t* seq_lens;        // [S], or null likewise
  const int32_t* cu_seqlens_q;    // [S + 1], or null: one query a sequence
  const float* alibi_slopes;      // [Hq] or null
  void* out;                      // [T, Hq, D], contiguous
  float* lse;                     // [T, Hq], contiguous, or null
  int64_t S, Hq, Hkv, D, max_blocks, block_size, window;  // window 0: none
  int64_t q_token, q_head, k_token, k_head, v_token, v_head;  // strides
  float scale, soft_cap;          // soft_cap 0: none
  int32_t dtype, cache_dtype, threads;
};

struct HeadArgs {
  const void* hidden;    // [S, C]
  const Weight* weight;  // [V, C]
  const float* temperature;  // [S] or null
  // edits in ascending order of id; num_edits 0: none
  const int64_t *edit_rows, *edit_ids;
  const float *edit_repetition, *edit_bias;
  const int32_t* allowed;    // [S, ceil(V / 32)] or null
  const float* uniforms;     // [S, tiles, 2] or null
  const int64_t* targets;    // [S] or null
  // results; each may be null
  int64_t* ids;              // [S, K]
  float *values, *raw;       // [S, K]
  float *lse, *raw_lse;      // [S]
  int64_t* drawn_ids;        // [S]
  float* drawn_raw;          // [S]
  int64_t* top_ids;          // [S, num_top]
  float* top_raw;            // [S, num_top]
  float* target_raw;         // [S]
  float *all_raw, *all_edited;  // [S, V]
  int64_t S, C, V, K, num_top, num_edits, hidden_stride;
  float soft_cap;            // 0: none
  int32_t dtype, threads;
};

struct NormWeights {
  const float *weight, *bias;  // null: there is none
};

struct LinearWeights {
  const Weight* weights;
  const void* bias;  // of the step's dtype, or null
  int64_t num_weights, N;
};

struct DecoderLayer {
  LinearWeights qkv, out, up, down;
  NormWeights attention_norm, q_norm, k_norm, attention_post_norm, mlp_norm, mlp_post_norm;
  const float *cos, *sin;  // [max_len, R / 2], or null: no rotation
  void *k_cache, *v_cache;
  float *k_scales, *v_scales;
  int64_t window;  // 0: none
};

// A forward pass of a decoder: hidden states after the final norm, and keys and values in their slots.
struct DecoderArgs {
  LinearWeights words;         // [V, C]
  NormWeights embedding_norm, norm;
  const DecoderLayer* layers;  // [num_layers]
  const void* position_table;  // [max_len, C] of the step's dtype, or null
  const float* alibi_slopes;   // [Hq] or null
  const int64_t *token_ids, *positions, *slots;  // [T]
  const int32_t *block_tables, *seq_lens, *cu_seqlens_q;  // as in AttentionArgs
  void* hidden;                // [T, C], contiguous
  int64_t num_layers, T, S, C, F, Hq, Hkv, D, R, max_blocks, block_size, num_slots;
  float words_scale, position_scale, eps, scale, soft_cap;  // soft_cap 0: none
  int32_t activation, interleaved, dtype, cache_dtype, threads;
};

struct Table {
  const char* name;
  void (*matmul)(const MatmulArgs&);
  void (*norm)(const NormArgs&);
  void (*activation)(const ActivationArgs&);
  void (*norm_gradient)(const NormGradientArgs&);
  void (*activation_gradient)(const ActivationGradientArgs&);
  void (*attention_gradient)(const AttentionGradientArgs&);
  void (*logit_gradient)(const LogitGradientArgs&);
  void (*rotary)(const RotaryArgs&);
  void (*attention)(const AttentionArgs&);
  void (*head)(const HeadArgs&);
  int64_t (*packed_bytes)(const Weight&);
  void (*pack)(const PackArgs&);
  void (*unpack)(const UnpackArgs&);
  void (*decoder)(const DecoderArgs&);
};

}  // namespace ps
