"""A row is what the stream holds there: pieces of documents, each with positions and attention of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from polyserve_kernels.dispatch import use_backend
from polyserve_training.data.packing import IGNORED, Packed, TextRows, pack
from polyserve_training.data.shards import DatasetWriter, Stream, open_dataset
from polyserve_training.model import make_trainable
from polyserve_training.trainer import token_losses
from support.tiny_decoder import tiny_decoder

END = 2
DOCUMENTS = [[10, 11, 12, END], [20, END], [30, 31, 32, 33, 34, 35, 36, END], [40, 41, END]]


def stream_of(folder: Path, documents: list[list[int]]) -> Stream:
    with DatasetWriter(folder, tokenizer_sha256="t", vocab_size=300, shard_tokens=5) as writer:
        for document in documents:
            writer.append("de", document, num_bytes=1)
        writer.finish()
    return open_dataset(folder).streams["de"]


def read_row(stream: Stream, number: int, context: int) -> Packed:
    return TextRows(stream, context).row(number)


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return stream_of(tmp_path / "data", DOCUMENTS)


def test_documents_in_a_row_are_sequences_with_positions_of_their_own(stream):
    row = read_row(stream, 0, 8)
    assert row.token_ids.tolist() == [10, 11, 12, END, 20, END, 30, 31]
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert row.cu_seqlens.tolist() == [0, 4, 6, 8]
    assert row.targets.tolist() == [11, 12, END, IGNORED, END, IGNORED, 31, 32]


def test_a_document_that_a_row_cuts_goes_on_in_the_next_with_positions_from_zero(stream):
    row = read_row(stream, 1, 8)
    assert row.token_ids.tolist() == [32, 33, 34, 35, 36, END, 40, 41]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert row.targets.tolist() == [33, 34, 35, 36, END, IGNORED, 41, END]


def test_the_end_of_a_document_at_the_end_of_a_row_has_nothing_to_learn(stream):
    assert read_row(stream, 0, 4).targets.tolist() == [11, 12, END, IGNORED]
    assert read_row(stream, 0, 4).cu_seqlens.tolist() == [0, 4]


@pytest.mark.parametrize("context", [1, 3, 5, 8, 16, 100])
@pytest.mark.parametrize("epoch", [0, 1, 2, 9])
def test_rows_teach_every_token_once_but_for_the_first_of_each_document(stream, context, epoch):
    source = TextRows(stream, context)
    rows = [source.row(number, epoch) for number in range(source.num_rows)]
    assert [len(row.token_ids) for row in rows[:-1]] == [context] * (len(rows) - 1)
    assert len(rows[-1].token_ids) <= context
    learned = [int(token) for row in rows for token in row.targets if token != IGNORED]
    tokens = [token for document in DOCUMENTS for token in document[1:]]
    assert learned in [tokens[first:] + tokens[:first] for first in range(len(tokens) if epoch else 1)]


def test_every_epoch_cuts_its_rows_at_other_places(stream):
    firsts = [TextRows(stream, 8).row(0, epoch).token_ids[0] for epoch in range(8)]
    assert sorted(firsts) == [END, END, 10, 11, 12, 20, 30, 31]  # each of the first eight tokens


def test_at_its_end_a_stream_goes_on_at_its_beginning(stream):
    row = TextRows(stream, 8).row(1, 1)
    assert row.token_ids.tolist() == [END, 40, 41, 10, 11, 12, END, 20]
    assert row.positions.tolist() == [0, 0, 1, 0, 1, 2, 3, 0]
    assert row.targets.tolist() == [IGNORED, 41, END, 11, 12, END, IGNORED, END]


def test_rows_lie_side_by_side_in_a_pack(stream):
    rows = [read_row(stream, 0, 8), read_row(stream, 1, 8)]
    both = pack(rows)
    assert both.cu_seqlens.tolist() == [0, 4, 6, 8, 14, 16]
    for name in ("token_ids", "positions", "targets"):
        assert getattr(both, name).tolist() == [*getattr(rows[0], name), *getattr(rows[1], name)]
    assert both.num_valid == rows[0].num_valid + rows[1].num_valid


def test_what_is_packed_in_a_row_counts_as_one(stream):
    conversations = pack([read_row(stream, 0, 4), read_row(stream, 1, 4)])
    assert pack([conversations, read_row(stream, 1, 8)]).rows == (8, 8)


def documents_of_a_model(first: int) -> list[list[int]]:
    numbers = np.random.default_rng(0)
    lengths = (first, 40, 1, 130, 17)
    return [[*numbers.integers(3, 300, length).tolist(), END] for length in lengths]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_documents_have_the_bits_of_documents_alone(dtype, backend, tmp_path):
    model = tiny_decoder(dtype)
    make_trainable(model)
    documents = documents_of_a_model(9)
    packed = read_row(stream_of(tmp_path / "all", documents), 0, 250)
    with use_backend(backend):
        together = token_losses(model, packed).detach().split(np.diff(packed.cu_seqlens).tolist())
        for number, document in enumerate(documents):
            alone = read_row(stream_of(tmp_path / str(number), [document]), 0, 250)
            assert torch.equal(together[number][: len(document) - 1], token_losses(model, alone).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_document_beside_it_changes_no_bit_of_a_documents_loss(dtype, tmp_path):
    model = tiny_decoder(dtype)
    losses = []
    for first in (9, 31):
        row = read_row(stream_of(tmp_path / str(first), _with_first(first)), 0, 250)
        losses.append(token_losses(model, row)[row.cu_seqlens[1] : row.cu_seqlens[2]])
    assert torch.equal(*losses)


def _with_first(length: int) -> list[list[int]]:
    """The documents, with another first one of this length."""
    return [[*range(3, 3 + length), END], *documents_of_a_model(9)[1:]]
