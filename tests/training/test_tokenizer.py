"""A trained tokenizer loses nothing, whoever reads it, and small languages are heard."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from polyserve.errors import TrainingError
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from polyserve_training.config import TokenizerOptions
from polyserve_training.data.tokenize import encode_text
from polyserve_training.tokenizer import train_tokenizer
from support.texts import LANGUAGES, TEXTS
from support.training_runs import VOCAB_SIZE


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.mark.parametrize("name", TEXTS)
def test_decoding_gives_the_text_back(name, tokenizer):
    assert tokenizer.decode(tokenizer.encode(TEXTS[name]), skip_special_tokens=False) == TEXTS[name]


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("a 1\n\t▁</s>x", max_size=30))
def test_decoding_gives_any_text_back(text, tokenizer):
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    plain = encode_text(tokenizer, text)
    assert tokenizer.decode(plain, skip_special_tokens=False) == text
    assert not tokenizer.special_ids.intersection(plain)


def test_it_has_polylms_layout(tokenizer):
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.encode("\n") == [3 + ord("\n")]
    assert tokenizer.encode("▁") == [VOCAB_SIZE - 1]


def test_digits_stand_alone(tokenizer):
    assert [tokenizer.token_text(i) for i in tokenizer.encode("2008")] == ["2", "0", "0", "8"]


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in ("empty", "rare")])
def test_transformers_gives_the_same_ids(name, tokenizer, tokenizer_folder):
    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert theirs(TEXTS[name])["input_ids"] == tokenizer.encode(TEXTS[name])


def test_the_report_has_every_language(tokenizer_folder):
    report = json.loads((tokenizer_folder / "report.json").read_text())["languages"]
    assert set(report) == set(LANGUAGES)
    for row in report.values():
        assert row["bytes_per_token"] == row["bytes"] / row["tokens"] > 1
        assert 0 < row["byte_share"] < 1


def test_a_small_language_is_read_more_often_where_alpha_is_small(tmp_path):
    (tmp_path / "en.txt").write_text("\n\n".join(f"the cat sat on the mat {i}" for i in range(600)))
    (tmp_path / "fi.txt").write_text("\n\n".join(f"kissa istui matolla {i}" for i in range(6)))
    rates = {}
    for alpha in (1.0, 0.3):
        out = tmp_path / f"tokenizer-{alpha}"
        files = [tmp_path / "en.txt", tmp_path / "fi.txt"]
        train_tokenizer(files, out, TokenizerOptions(vocab_size=330, alpha=alpha, threads=1))
        rates[alpha] = json.loads((out / "report.json").read_text())["rates"]
    assert rates[1.0] == pytest.approx({"en": 1.0, "fi": 1.0})
    assert rates[0.3]["fi"] == 8.0  # the cap of max_epochs
    assert rates[0.3]["en"] < 1.0


def test_more_tokens_than_the_text_holds_is_one_line_and_leaves_nothing(texts_folder, tmp_path):
    with pytest.raises(TrainingError, match="cannot train 200000 tokens on this text"):
        train_tokenizer([texts_folder], tmp_path / "out", TokenizerOptions(vocab_size=200_000))
    assert not (tmp_path / "out").exists()
