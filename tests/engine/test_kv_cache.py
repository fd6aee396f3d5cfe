"""The cache's size in blocks, and its memory."""

import psutil
import pytest
import torch

from polyserve.engine.kv_cache import KVCache, allocate, bytes_per_block, num_blocks_for
from support.tiny_decoder import tiny_config

GIB = 2**30


def blocks_for(memory_bytes, **changes):
    sizes = {"block_bytes": 2**20, "block_size": 16, "max_model_len": 2048, "max_num_seqs": 64}
    return num_blocks_for(memory_bytes, **(sizes | changes))


def tensors(cache: KVCache) -> list[torch.Tensor]:
    return [layer.k for layer in cache.layers] + [layer.v for layer in cache.layers]


def test_a_block_has_keys_and_values_of_every_layer():
    assert bytes_per_block(tiny_config(), block_size=16, dtype=torch.bfloat16) == 2 * 2 * 16 * 2 * 16 * 2


def test_the_memory_is_what_was_asked_for():
    assert blocks_for(100 * 2**20 + 5) == 100


def test_without_a_figure_it_is_a_gibibyte():
    assert blocks_for(None) == 1024


def test_without_a_figure_one_longest_sequence_fits():
    assert blocks_for(None, max_model_len=32_768) == 2048


@pytest.mark.parametrize("memory_bytes", [None, 100 * GIB])
def test_there_are_never_more_blocks_than_could_be_in_use(memory_bytes):
    assert blocks_for(memory_bytes, max_model_len=100, max_num_seqs=3) == 3 * 7


def test_keys_and_values_of_a_layer_begin_as_zeros_and_are_contiguous():
    cache = allocate(tiny_config(), num_blocks=5, block_size=4, dtype=torch.bfloat16)
    assert (len(cache.layers), cache.num_blocks, cache.block_size) == (2, 5, 4)
    for tensor in tensors(cache):
        assert tensor.shape == (5, 4, 2, 16)
        assert tensor.is_contiguous()
        assert not tensor.any()


def test_layers_do_not_overlap():
    cache = allocate(tiny_config(), num_blocks=5, block_size=4, dtype=torch.float32)
    for number, tensor in enumerate(tensors(cache)):
        tensor.fill_(number)
    assert [tensor.unique().tolist() for tensor in tensors(cache)] == [[0], [1], [2], [3]]


def test_blocks_that_are_never_used_cost_no_memory():
    before = psutil.Process().memory_info().rss
    cache = allocate(tiny_config(), num_blocks=2**17, block_size=16, dtype=torch.float32)  # a GiB
    cache.layers[0].k[:100] = 1
    assert psutil.Process().memory_info().rss - before < 2**26
