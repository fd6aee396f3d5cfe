"""The compiled library: both sides of its interface agree, and every instruction set that this processor has is right.

The contracts' own tests run on the best one.
"""

import ctypes

import pytest
import torch

from polyserve_kernels import ops
from polyserve_kernels.cpu import library
from polyserve_kernels.types import BlockCache, WeightFormat
from support.plain_attention import plain_attention
from support.tolerance import assert_as_good_as_torch

INSTRUCTION_SETS = ["avx2", "avx512", "avx512bf16"]


def test_the_structs_are_as_large_here_as_there():
    there = (ctypes.c_int64 * 15)()
    library.library().ps_sizes(there)
    here = [library.Weight, library.Pack, library.Unpack, library.Matmul, library.Norm, library.Activation]
    here += [library.NormGradient, library.ActivationGradient]
    here += [library.AttentionGradient, library.LogitGradient]
    here += [library.Rotary, library.Attention, library.Head, library.DecoderLayer, library.Decoder]
    assert list(there) == [ctypes.sizeof(struct) for struct in here]


def test_an_instruction_set_that_there_is_not_is_refused():
    choose = library.library().ps_choose
    assert choose(b"abacus") is None
    assert choose(None).decode() in INSTRUCTION_SETS


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("width", [1, 5, 31, 32, 100, 577])
def test_products_are_as_exact_as_torch_and_free_of_company(width, dtype):
    x, w, bias = torch.randn(37, width).to(dtype), torch.randn(75, width).to(dtype), torch.randn(75).to(dtype)
    y = ops.matmul(x, w, bias)
    assert_as_good_as_torch(y, x @ w.t() + bias, x.double() @ w.double().t() + bias.double())
    packed = ops.packed_weight([(75, WeightFormat(dtype=dtype))], width)
    ops.pack(packed, w, torch.arange(75))
    for weight in (w, packed):
        assert torch.equal(torch.cat([ops.matmul(part, weight, bias) for part in x.split([1, 2, 5, 29])]), y)


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("size", [5, 16, 64, 80])
def test_attention_is_as_exact_as_torch_decoded_and_at_once(size, dtype):
    lens, options = [150, 3], {"scale": size**-0.5, "window": 70, "soft_cap": 5.0, "alibi_slopes": torch.rand(6)}
    q, k, v = (torch.randn(153, heads, size).to(dtype) for heads in (6, 2, 2))
    bounds = torch.tensor([0, 150, 153]).int()
    ours = ops.attention_varlen(q, k, v, bounds, **options)
    eager = plain_attention(q, k, v, lens, **options)
    assert_as_good_as_torch(ours, eager, plain_attention(q.double(), k.double(), v.double(), lens, **options))
    cache = BlockCache(*torch.zeros(2, 10, 16, 2, size, dtype=dtype))
    ops.rotary_write_kv(q[:150], k[:150], v[:150], None, None, cache, torch.arange(150))
    tables = torch.arange(10).int()[None]
    for position in (0, 69, 70, 127, 128, 149):
        one = ops.paged_decode(q[position : position + 1], cache, tables, torch.tensor([position + 1]).int(), **options)
        assert torch.equal(one, ours[position : position + 1])


@pytest.mark.usefixtures("_instruction_set")
def test_norms_activations_and_the_head_are_as_exact_as_torch(dtype):
    x, weight = torch.randn(9, 77).to(dtype), torch.randn(77).to(dtype)
    exact = torch.nn.functional.rms_norm(x.double(), (77,), weight.double(), 1e-5)
    assert_as_good_as_torch(
        ops.rms_norm(x, weight, eps=1e-5), torch.nn.functional.rms_norm(x, (77,), weight, 1e-5), exact
    )
    gelu = torch.nn.functional.gelu
    assert_as_good_as_torch(ops.bias_gelu(x), gelu(x, approximate="tanh"), gelu(x.double(), approximate="tanh"))
    vocabulary, targets = torch.randn(3000, 77).to(dtype), torch.arange(9) * 300
    scores, top_ids, _ = ops.token_logprobs(x, vocabulary, targets, num_top=5)
    eager, exact = ((x.to(kind) @ vocabulary.to(kind).t()).log_softmax(1) for kind in (torch.float32, torch.float64))
    place = targets[:, None]
    assert_as_good_as_torch(scores, eager.gather(1, place)[:, 0], exact.gather(1, place)[:, 0])
    assert torch.equal(top_ids, exact.topk(5).indices)
