"""Writing keys and values into the paged cache, and copying blocks."""

import pytest
import torch
from torch import Tensor

from polyserve_kernels import ops
from polyserve_kernels.reference import kv_cache as reference
from polyserve_kernels.types import BlockCache

pytestmark = pytest.mark.usefixtures("backend", "poisoned")

LARGEST = {torch.int8: 127, torch.float8_e4m3fn: 448}
ROUNDING = {torch.int8: 1 / 254, torch.float8_e4m3fn: 1 / 16}  # of the largest magnitude; of each number


@pytest.fixture(params=LARGEST, ids=["int8", "float8"])
def scaled_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def empty(dtype: torch.dtype = torch.float32, *, heads: int = 2, size: int = 8) -> BlockCache:
    """6 blocks of 4 tokens."""
    scales = torch.zeros(2, 6, 4, heads) if dtype in LARGEST else (None, None)
    return BlockCache(*torch.zeros(2, 6, 4, heads, size, dtype=dtype), *scales)


def numbers(x: Tensor) -> Tensor:
    """[num_slots, ...], what torch can index: float8 as its bytes."""
    return (x.view(torch.int8) if x.dtype.itemsize == 1 else x).flatten(0, 1)


def test_keys_are_rotated_and_values_are_not():
    q, k, v = torch.randn(3, 4, 8), torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    cos, sin = torch.randn(3, 4), torch.randn(3, 4)
    cache = empty()
    slots = torch.tensor([7, 0, 22])
    turned = ops.rotary_write_kv(q, k, v, cos, sin, cache, slots)
    q_expected, k_expected = ops.rotary(q, k, cos, sin)
    assert torch.equal(turned, q_expected)
    assert torch.equal(cache.k.flatten(0, 1)[slots], k_expected)
    assert torch.equal(cache.v.flatten(0, 1)[slots], v)


def test_nothing_else_is_written():
    cache = empty()
    k = torch.ones(2, 2, 8)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.tensor([5, 9]))
    written = torch.zeros(24, dtype=torch.bool)
    written[[5, 9]] = True
    for x in (cache.k, cache.v):
        assert (x.flatten(0, 1)[~written] == 0).all()
        assert (x.flatten(0, 1)[written] == 1).all()


def test_a_token_without_a_slot_is_skipped():
    cache = empty()
    k = torch.arange(1.0, 4.0)[:, None, None].expand(3, 2, 8)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.tensor([3, -1, 4]))
    assert cache.k.flatten(0, 1)[:, 0, 0].tolist() == [0, 0, 0, 1, 3] + [0] * 19


def test_without_angles_queries_come_back_as_they_are():
    q = torch.randn(3, 4, 8)
    cache = empty()
    k = torch.randn(3, 2, 8)
    assert torch.equal(ops.rotary_write_kv(q, k, k, None, None, cache, torch.arange(3)), q)


def test_interleaved_pairs_turn_as_in_rotary():
    q, k = torch.randn(3, 4, 8), torch.randn(3, 2, 8)
    cos, sin = torch.randn(3, 3), torch.randn(3, 3)
    cache = empty()
    ours = ops.rotary_write_kv(q, k, k, cos, sin, cache, torch.arange(3), interleaved=True)
    q_expected, k_expected = ops.rotary(q, k, cos, sin, interleaved=True)
    assert torch.equal(ours, q_expected)
    assert torch.equal(cache.k.flatten(0, 1)[:3], k_expected)


def test_keys_are_rounded_to_the_caches_dtype():
    cache = empty(torch.bfloat16)
    k = torch.randn(3, 2, 8)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.arange(3))
    assert torch.equal(cache.k.flatten(0, 1)[:3], k.bfloat16())


def test_strided_keys_and_values_are_fine(dtype):
    qkv = torch.randn(5, 8, 8).to(dtype)
    cache = empty(dtype)
    ops.rotary_write_kv(qkv[:, :4], qkv[:, 4:6], qkv[:, 6:], None, None, cache, torch.arange(5))
    assert torch.equal(cache.k.flatten(0, 1)[:5], qkv[:, 4:6])
    assert torch.equal(cache.v.flatten(0, 1)[:5], qkv[:, 6:])


def test_blocks_are_copied_whole():
    cache = BlockCache(*torch.randn(2, 6, 4, 2, 8))
    before = cache.k.clone(), cache.v.clone()
    ops.copy_blocks(cache, torch.tensor([[0, 3], [0, 5], [2, 1]]))
    for x, old in zip((cache.k, cache.v), before, strict=True):
        assert torch.equal(x, old[[0, 2, 2, 0, 4, 0]])


@pytest.mark.parametrize("pairs", [torch.empty(0, 2, dtype=torch.int64)])
def test_copying_nothing_changes_nothing(pairs):
    cache = BlockCache(*torch.randn(2, 6, 4, 2, 8))
    before = cache.k.clone()
    ops.copy_blocks(cache, pairs)
    assert torch.equal(cache.k, before)


def test_scaled_keys_and_values_are_the_bits_of_the_reference(scaled_dtype, dtype):
    qkv = torch.cat((torch.randn(9, 6, 20), 1e-3 * torch.randn(9, 3, 20), 300 * torch.randn(9, 3, 20)), dim=1).to(dtype)
    q, k, v = qkv.split((6, 3, 3), dim=1)
    cos, sin = torch.randn(9, 7), torch.randn(9, 7)
    slots = torch.tensor([7, 0, 22, -1, 3, 4, 5, 12, 23])
    for angles in ((cos, sin), (None, None)):
        for interleaved in (False, True):
            ours, expected = (empty(scaled_dtype, heads=3, size=20) for _ in range(2))
            ops.rotary_write_kv(q, k, v, *angles, ours, slots, interleaved=interleaved)
            reference.rotary_write_kv(q, k, v, *angles, expected, slots, interleaved=interleaved)
            for name in ("k", "v", "k_scales", "v_scales"):
                assert torch.equal(numbers(getattr(ours, name)), numbers(getattr(expected, name))), name


def test_every_float8_rounds_as_torch_rounds_it():
    x = torch.cat(
        (torch.linspace(-448, 448, 2000), torch.logspace(-12, 8.8, 2000, base=2), -torch.logspace(-12, 0, 95))
    )
    x = torch.cat((x, torch.tensor([448.0])))[None, :, None].expand(1, 4096, 8)
    cache = empty(torch.float8_e4m3fn, heads=1, size=4096)
    k = x[..., 0][:, None]
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.tensor([5]))
    assert torch.equal(numbers(cache.k)[5, 0], k[0, 0].to(torch.float8_e4m3fn).view(torch.int8))


def test_what_is_stored_times_its_scale_is_as_near_as_the_dtype_allows(scaled_dtype):
    k, v = 5 * torch.randn(24, 2, 8), 0.01 * torch.randn(24, 2, 8)
    cache = empty(scaled_dtype)
    ops.rotary_write_kv(k, k, v, None, None, cache, torch.arange(24))
    for x, stored, scales in ((k, cache.k, cache.k_scales), (v, cache.v, cache.v_scales)):
        stored, scales = stored.float().flatten(0, 1), scales.flatten(0, 1)
        largest = x.abs().amax(-1)
        assert torch.equal(scales, largest / LARGEST[scaled_dtype])
        error = (stored * scales[..., None] - x).abs()
        size = (
            largest[..., None] if scaled_dtype == torch.int8 else x.abs() + largest[..., None] / LARGEST[scaled_dtype]
        )
        assert (error <= size * ROUNDING[scaled_dtype] * (1 + 1e-5)).all()


def test_a_head_of_zeros_has_scale_0_and_zeros(scaled_dtype):
    k = torch.randn(3, 2, 8)
    k[1, 0] = 0
    cache = empty(scaled_dtype)
    cache.k_scales.fill_(7)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.arange(3))
    assert cache.k_scales[0, 1, 0] == 0
    assert (cache.k_scales[0, :3].flatten() == 0).sum() == 1
    assert (numbers(cache.k)[1, 0] == 0).all()


def test_a_broken_number_is_not_hidden_by_its_scale(scaled_dtype, backend):
    if backend == "cpu":
        pytest.skip("the C++ kernels' scales pass over what is no number")
    k = torch.randn(3, 2, 8)
    k[1, 0, 3] = float("nan")
    cache = empty(scaled_dtype)
    ops.rotary_write_kv(k, k, torch.randn(3, 2, 8), None, None, cache, torch.arange(3))
    assert cache.k_scales.flatten(0, 1).isnan().nonzero().tolist() == [[1, 0]]


def test_scaled_caches_are_written_in_their_slots_alone(scaled_dtype):
    cache = empty(scaled_dtype)
    k = 1 + torch.rand(3, 2, 8)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.tensor([5, -1, 9]))
    written = torch.zeros(24, dtype=torch.bool)
    written[[5, 9]] = True
    for x in (cache.k, cache.v, cache.k_scales, cache.v_scales):
        assert (numbers(x)[~written] == 0).all()
        assert (numbers(x)[written] != 0).all()


def test_more_heads_than_a_program_takes_are_all_written(dtype):
    q, k, v = torch.randn(2, 33, 96).to(dtype), torch.randn(2, 11, 96).to(dtype), torch.randn(2, 11, 96).to(dtype)
    cos, sin = torch.randn(2, 40), torch.randn(2, 40)
    cache = empty(dtype, heads=11, size=96)
    turned = ops.rotary_write_kv(q, k, v, cos, sin, cache, torch.tensor([6, 2]))
    q_expected, k_expected = ops.rotary(q, k, cos, sin)
    assert torch.equal(turned, q_expected)
    assert torch.equal(cache.k.flatten(0, 1)[[6, 2]], k_expected)
    assert torch.equal(cache.v.flatten(0, 1)[[6, 2]], v)


def test_slices_of_one_projection_are_written_from_where_they_lie(scaled_dtype, dtype):
    qkv = torch.randn(5, 8 * 8).to(dtype)
    q, k, v = (part.unflatten(1, (-1, 8)) for part in qkv.split((32, 16, 16), dim=1))
    strided, packed = empty(scaled_dtype), empty(scaled_dtype)
    slots = torch.arange(10)[::2]
    cos, sin = torch.randn(5, 4), torch.randn(5, 4)
    turned = ops.rotary_write_kv(q, k, v, cos, sin, strided, slots)
    assert torch.equal(
        turned, ops.rotary_write_kv(q.contiguous(), k.contiguous(), v.contiguous(), cos, sin, packed, slots)
    )
    for x, y in ((strided.k, packed.k), (strided.v, packed.v), (strided.k_scales, packed.k_scales)):
        assert torch.equal(numbers(x), numbers(y))


def test_no_tokens_write_nothing(scaled_dtype):
    cache = empty(scaled_dtype)
    none = torch.empty(0, 2, 8)
    turned = ops.rotary_write_kv(none, none, none, None, None, cache, torch.empty(0, dtype=torch.int64))
    assert turned.shape == (0, 2, 8)
    assert (numbers(cache.k) == 0).all()


@pytest.mark.parametrize(("heads", "size"), [(2, 8), (3, 5), (2, 1100)])
def test_blocks_are_copied_with_their_scales(heads, size, scaled_dtype):
    stored = torch.randint(-127, 128, (2, 6, 4, heads, size), dtype=torch.int8).view(scaled_dtype)
    cache = BlockCache(*stored, *torch.rand(2, 6, 4, heads))
    tensors = (cache.k, cache.v, cache.k_scales, cache.v_scales)
    before = [numbers(x).clone().unflatten(0, (6, 4)) for x in tensors]
    ops.copy_blocks(cache, torch.tensor([[0, 3], [0, 5], [2, 1]]))
    for x, old in zip(tensors, before, strict=True):
        assert torch.equal(numbers(x).unflatten(0, (6, 4)), old[[0, 2, 2, 0, 4, 0]])


def test_slots_and_blocks_beyond_the_cache_are_left_alone(backend):
    if backend != "triton":
        pytest.skip("the others refuse them or trust their caller")
    cache = empty()
    memory = torch.zeros(2, 20, 4, 2, 8)
    cache = BlockCache(memory[0, 5:11], memory[1, 5:11])
    k = torch.ones(3, 2, 8)
    ops.rotary_write_kv(k, k, k, None, None, cache, torch.tensor([24, -2, 30]))
    assert (memory == 0).all()
    cache.k[:] = cache.v[:] = 1
    ops.copy_blocks(cache, torch.tensor([[0, 6], [1, -1]]))
    assert (memory[:, :5] == 0).all()
    assert (memory[:, 11:] == 0).all()
