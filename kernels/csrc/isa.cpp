// Every kernel, for one instruction set: compiled once for each, with PS_ISA as its name and its compiler flags.

#include "activation.cpp"
#include "attention.cpp"
#include "attention_gradient.cpp"
#include "gradients.cpp"
#include "head.cpp"
#include "matmul.cpp"
#include "norm.cpp"
#include "pack.cpp"
#include "rotary.cpp"
#include "unpack.cpp"

#include "decoder.cpp"  // which calls the others

#define PS_STRING_OF(x) #x
#define PS_STRING(x) PS_STRING_OF(x)

namespace PS_ISA {

extern const ps::Table table;
const ps::Table table = {PS_STRING(PS_ISA), matmul, norm, activation, norm_gradient, activation_gradient, attention_gradient, logit_gradient, rotary, attention, head, packed_bytes, pack, unpack, decoder};

}  // namespace PS_ISA
