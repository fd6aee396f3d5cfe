"""The tensors of a step are what its chunks and block tables say."""

import torch

from polyserve.engine.batch import KnownSequence, make_batch
from polyserve.engine.kv_cache import allocate
from polyserve.engine.step import Chunk, Step
from polyserve.sampling_params import SamplingParams
from support.tiny_decoder import tiny_config


def known(tokens, block_table):
    return KnownSequence(tokens, len(tokens), 0, SamplingParams(), None, False, block_table)


def test_sequences_with_one_new_token_come_first_and_every_row_has_its_own_slot():
    sequences = {
        0: known([10, 11, 12, 13, 14, 15], [3, 1]),
        1: known([20, 21, 22], [5]),
        2: known([30, 31, 32, 33, 34], [0, 2]),
    }
    chunks = [Chunk(0, 2, 4, 0, [], True), Chunk(1, 2, 1, 0, [], True), Chunk(2, 4, 1, 0, [], True)]
    cache = allocate(tiny_config(), num_blocks=6, block_size=4, dtype=torch.float32)
    batch = make_batch(Step(chunks), sequences, cache)
    context = batch.context
    assert [chunk.seq_id for chunk in batch.chunks] == [1, 2, 0]
    assert batch.first_rows == [0, 1, 2, 6]
    assert batch.token_ids.tolist() == [22, 34, 12, 13, 14, 15]
    assert batch.positions.tolist() == [2, 4, 2, 3, 4, 5]
    assert context.slot_mapping.tolist() == [5 * 4 + 2, 2 * 4 + 0, 3 * 4 + 2, 3 * 4 + 3, 1 * 4 + 0, 1 * 4 + 1]
    assert context.block_tables.tolist() == [[5, -1], [0, 2], [3, 1]]
    assert context.seq_lens.tolist() == [3, 5, 6]
    assert context.cu_seqlens_q.tolist() == [0, 1, 2, 6]
    assert context.num_decodes == 2


def test_indices_have_the_types_that_kernels_ask_for():
    cache = allocate(tiny_config(), num_blocks=1, block_size=4, dtype=torch.float32)
    batch = make_batch(Step([Chunk(0, 0, 2, 0, [], True)]), {0: known([1, 2], [0])}, cache)
    assert {batch.token_ids.dtype, batch.positions.dtype, batch.context.slot_mapping.dtype} == {torch.int64}
    assert {batch.context.block_tables.dtype, batch.context.seq_lens.dtype, batch.context.cu_seqlens_q.dtype} == {
        torch.int32
    }
