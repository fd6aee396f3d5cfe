// What the library exports, and the choice of the instruction set: the best that this processor has.

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

namespace avx2 {
extern const ps::Table table;
}
namespace avx512 {
extern const ps::Table table;
}
namespace avx512bf16 {
extern const ps::Table table;
}

namespace {

const ps::Table* best() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    const bool multiplies_bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
    return multiplies_bf16 ? &avx512bf16::table : &avx512::table;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return &avx2::table;
  return nullptr;
}

const ps::Table* chosen = nullptr;

}  // namespace

#define PS_EXPORT __attribute__((visibility("default")))

extern "C" {

// Choose the instruction set: the best one, or the one that is named. Returns its name, or null if there is none here.
PS_EXPORT const char* ps_choose(const char* name) {
  const ps::Table* const fastest = best();
  chosen = fastest;
  if (name != nullptr && fastest != nullptr) {
    chosen = nullptr;
    for (const ps::Table* table : {&avx2::table, &avx512::table, &avx512bf16::table}) {
      if (std::strcmp(table->name, name) == 0) chosen = table;
      if (table == fastest) break;  // what comes after it this processor cannot run
    }
  }
  return chosen == nullptr ? nullptr : chosen->name;
}

// How large each struct of arguments is here, in the order of kernels.h: whoever fills them can see that both sides agree.
PS_EXPORT void ps_sizes(int64_t sizes[15]) {
  const int64_t all[15] = {sizeof(ps::Weight),         sizeof(ps::PackArgs),   sizeof(ps::UnpackArgs),
                          sizeof(ps::MatmulArgs),     sizeof(ps::NormArgs),   sizeof(ps::ActivationArgs),
                          sizeof(ps::NormGradientArgs), sizeof(ps::ActivationGradientArgs), sizeof(ps::AttentionGradientArgs),
                          sizeof(ps::LogitGradientArgs),
                          sizeof(ps::RotaryArgs),     sizeof(ps::AttentionArgs), sizeof(ps::HeadArgs),
                          sizeof(ps::DecoderLayer), sizeof(ps::DecoderArgs)};
  std::memcpy(sizes, all, sizeof all);
}

PS_EXPORT int64_t ps_packed_bytes(const ps::Weight* weight) { return chosen->packed_bytes(*weight); }
PS_EXPORT void ps_pack(const ps::PackArgs* args) { chosen->pack(*args); }
PS_EXPORT void ps_unpack(const ps::UnpackArgs* args) { chosen->unpack(*args); }
PS_EXPORT void ps_matmul(const ps::MatmulArgs* args) { chosen->matmul(*args); }
PS_EXPORT void ps_norm(const ps::NormArgs* args) { chosen->norm(*args); }
PS_EXPORT void ps_activation(const ps::ActivationArgs* args) { chosen->activation(*args); }
PS_EXPORT void ps_norm_gradient(const ps::NormGradientArgs* args) { chosen->norm_gradient(*args); }
PS_EXPORT void ps_activation_gradient(const ps::ActivationGradientArgs* args) { chosen->activation_gradient(*args); }
PS_EXPORT void ps_attention_gradient(const ps::AttentionGradientArgs* args) { chosen->attention_gradient(*args); }
PS_EXPORT void ps_logit_gradient(const ps::LogitGradientArgs* args) { chosen->logit_gradient(*args); }
PS_EXPORT void ps_rotary(const ps::RotaryArgs* args) { chosen->rotary(*args); }
PS_EXPORT void ps_attention(const ps::AttentionArgs* args) { chosen->attention(*args); }
PS_EXPORT void ps_decoder(const ps::DecoderArgs* args) { chosen->decoder(*args); }
PS_EXPORT void ps_head(const ps::HeadArgs* args) { chosen->head(*args); }

}
