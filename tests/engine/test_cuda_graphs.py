"""Steps filled up to the sizes of graphs give the same answers. A graph is played here by computing again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polyserve.engine.batch import KnownSequence, make_batch
from polyserve.engine.cuda_graphs import DecodeGraphs
from polyserve.engine.engine import Engine
from polyserve.engine.kv_cache import allocate
from polyserve.engine.runner import ModelRunner
from polyserve.engine.step import Chunk, Step
from polyserve.sampling_params import SamplingParams
from support.engine_runs import make_engine, make_request, run
from support.tiny_decoder import tiny_decoder


class Recordings:
    """Plays a recorded graph as a GPU would: always from the same tensors, into the same tensor."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = compute().clone()
        self.sizes.append(len(result))
        return lambda: result.copy_(compute()), result


def engine_with_graphs(recordings: Recordings, **config: object) -> Engine:
    model = tiny_decoder()
    engine = make_engine(model, **config)
    cache = allocate(model.config, num_blocks=engine.stats().num_blocks, block_size=16, dtype=torch.float32)
    engine._runner = ModelRunner(model, cache, graphs=DecodeGraphs(model, cache, capture=recordings))
    return engine


def requests() -> list[object]:
    """21 of different lengths, so that batches shrink through many sizes."""
    return [
        make_request(f"r{n}", list(range(3, 5 + 7 * n)), seed=n, max_tokens=3 + 2 * n, ignore_eos=True, logprobs=1)
        for n in range(21)
    ]


def test_answers_are_those_of_steps_without_graphs():
    recordings = Recordings()
    with_graphs = run(engine_with_graphs(recordings), requests())
    assert with_graphs == run(make_engine(tiny_decoder()), requests())
    assert set(recordings.sizes) == {1, 2, 4, 8, 16, 24}


def test_a_size_is_recorded_when_it_is_first_met_and_only_then():
    recordings = Recordings()
    engine = engine_with_graphs(recordings)
    assert recordings.sizes == []
    for _ in range(3):
        run(engine, [make_request("r", [5, 6, 7], max_tokens=9)])
    assert recordings.sizes == [1]


@pytest.mark.parametrize("num_rows", [1, 3, 9])
def test_rows_that_fill_up_a_graph_write_nothing(num_rows):
    model = tiny_decoder()
    cache = allocate(model.config, num_blocks=12, block_size=16, dtype=torch.float32)
    graphs = DecodeGraphs(model, cache, capture=Recordings())
    for count in (9, num_rows):  # what a larger step left behind is not written again
        for layer in cache.layers:
            layer.k.zero_()
            layer.v.zero_()
        known = {n: KnownSequence([4] * 5, 5, 0, SamplingParams(), None, False, [n]) for n in range(count)}
        chunks = [Chunk(n, 4, 1, 0, [], True) for n in range(count)]
        hidden = graphs.run(make_batch(Step(chunks), known, cache))
        assert len(hidden) == count
        written = cache.layers[0].k.flatten(0, 1).flatten(1).any(1).nonzero().squeeze(1)
        assert written.tolist() == [16 * n + 4 for n in range(count)]
