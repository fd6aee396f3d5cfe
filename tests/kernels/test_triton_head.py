"""What Triton's head does that its contract does not say: its tiles, and how it finds the best ids."""

import pytest
import torch

from polyserve_kernels import ops
from polyserve_kernels.dispatch import use_backend
from polyserve_kernels.triton import cross_entropy, sampling, vocab_best
from polyserve_kernels.triton import head as triton_head
from polyserve_kernels.types import HeadTopK, LogitEdits

VOCAB = 17_001  # three tiles that race in a draw


def everything(num_rows: int, vocab: int, *, k: int = 9) -> tuple[HeadTopK, tuple[torch.Tensor, ...]]:
    """head_topk with edits, a draw and a top list, and token_logprobs, of the same hidden states in every call."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(num_rows, 40), torch.randn(vocab, 40)
    places = torch.randperm(num_rows * vocab)[: 20 * num_rows]
    edits = LogitEdits(
        rows=places // vocab,
        ids=places % vocab,
        repetition=torch.rand(len(places)) + 0.7,
        bias=torch.randn(len(places)),
        allowed=torch.randint(-(2**31), 2**31, (num_rows, -(-vocab // 32)), dtype=torch.int64).int(),
    )
    uniforms = torch.rand(num_rows, ops.num_vocab_tiles(vocab, 40), 2).clamp(1e-6, 1 - 1e-6)
    best = ops.head_topk(hidden, weight, k=k, edits=edits, uniforms=uniforms, num_top=k)
    return best, ops.token_logprobs(hidden, weight, best.ids[:, 0], num_top=3)


def values(results: tuple[HeadTopK, tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    best, scores = results
    return [*(getattr(best, name) for name in HeadTopK.__dataclass_fields__), *scores]


def test_the_same_random_numbers_draw_the_same_ids_as_in_the_reference():
    drawn = []
    for name in ("reference", "triton"):
        with use_backend(name):
            drawn.append(everything(24, VOCAB)[0].drawn_ids)
    assert torch.equal(*drawn)
    assert len({int(token) // 8192 for token in drawn[0]}) == 3


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [(triton_head, "_INTERPRETED_IDS", 256), (cross_entropy, "MAX_ROWS", 4), (sampling, "MAX_ROWS", 4)],
)
def test_bits_are_free_of_the_size_of_tiles_and_of_passes(monkeypatch, module, name, value):
    with use_backend("triton"):
        expected = values(everything(10, 1300))
        monkeypatch.setattr(module, name, value)
        assert all(torch.equal(a, b) for a, b in zip(values(everything(10, 1300)), expected, strict=True))


@pytest.mark.parametrize("vocab", [1, 2, 31, 33, 1000, 50_257, 256_000])
def test_groups_keep_enough_keys_and_not_many_more(vocab):
    for k in {1, min(2, vocab), min(128, vocab), (vocab + 1) // 2, vocab}:
        group = vocab_best.group_size(k, vocab)
        kept, opened = 2 * -(-vocab // group), k // 2 * group
        assert kept >= k
        assert kept <= max(vocab / 16, 2 * (k * vocab) ** 0.5) + 2
        assert opened <= min(16 * k, (k * vocab) ** 0.5)


def test_neighbours_among_the_best_are_found_only_because_their_groups_are_computed_again(monkeypatch):
    weight = -torch.arange(1000.0)[:, None]
    with use_backend("triton"):
        assert ops.head_topk(torch.ones(1, 1), weight, k=9).ids.tolist() == [list(range(9))]
        monkeypatch.setattr(vocab_best, "raw_of_ids", lambda head, ids: torch.full(ids.shape, -torch.inf))
        assert ops.head_topk(torch.ones(1, 1), weight, k=9).ids.tolist() != [list(range(9))]
