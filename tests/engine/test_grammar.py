"""Answers that follow a grammar, from tiny random models: whatever the model would rather say, the text is allowed."""

import json
import re

import jsonschema
import pytest

from polyserve.config import EngineConfig
from polyserve.engine.engine import Engine
from polyserve.engine.grammar import Grammars
from polyserve.errors import InvalidRequest
from polyserve.llm import LLM
from polyserve.request import Vocabulary
from polyserve.sampling_params import SamplingParams
from support.checkpoints import Sizes, make_checkpoint
from support.engine_runs import make_request, run
from support.tiny_decoder import EOS, VOCAB_SIZE, tiny_decoder

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "bé", "北京"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
AS_JSON = json.dumps(PERSON)
TOKENIZERS = {
    "SentencePiece": ("polylm", "safetensors"),
    "byte-level": ("llama", "safetensors"),
    "GGUF": ("llama", "gguf-f32"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    family, file_format = TOKENIZERS[request.param]
    path = make_checkpoint(tmp_path_factory.mktemp(family), family, format=file_format, sizes=Sizes(max_len=1024))
    return LLM(str(path), config=EngineConfig(dtype="float32", threads=1))


def texts(llm: LLM, **params: object) -> list[str]:
    """Five answers, each ended by its grammar."""
    answers = llm.generate("Hi", SamplingParams(n=5, max_tokens=900, seed=3, **params))[0].outputs
    assert {answer.finish_reason for answer in answers} == {"stop"}
    return [answer.text for answer in answers]


def test_a_schema_is_followed(llm):
    for text in texts(llm, guided_json=AS_JSON):
        jsonschema.validate(json.loads(text), PERSON)


def test_an_expression_matches_the_whole_answer(llm):
    expression = r"(\d{3}-|é)+[ab京]{2,5}x?"
    assert all(re.fullmatch(expression, text) for text in texts(llm, guided_regex=expression))


def test_the_answer_is_one_of_the_choices(llm):
    choices = ['"quoted"', "back\\slash", "new\nline", "naïve 北京 😀", "\x00"]
    assert set(texts(llm, guided_choice=choices)) <= set(choices)


@pytest.mark.parametrize(
    "grammar", ['start: "<" word ">"\nword: /[a-c]{1,6}/', 'root ::= "<" word ">"\nword ::= [a-c] [a-c]?']
)
def test_a_grammar_may_be_in_either_notation(llm, grammar):
    assert all(re.fullmatch("<[a-c]{1,6}>", text) for text in texts(llm, guided_grammar=grammar))


def test_white_space_in_json_is_bounded(llm):
    for text in texts(llm, guided_json='{"type": "array", "items": {"const": 1}, "minItems": 20, "maxItems": 20}'):
        assert re.fullmatch(r"(\[|\]|1|,| |\n[ \t]{0,32})*", text)
        assert not re.search(r"\s\n| {33}", text)


def test_log_probabilities_are_still_the_models_own(llm):
    params = SamplingParams(guided_choice=["yes"], logprobs=1, max_tokens=9, seed=0)
    answer = llm.generate("Hi", params)[0].outputs[0]
    forced = llm.generate(
        [llm.tokenizer.encode("Hi") + answer.token_ids], SamplingParams(max_tokens=1, prompt_logprobs=0)
    )
    scored = forced[0].prompt_logprobs[-len(answer.token_ids) :]
    assert [entry.logprob for entry in answer.logprobs] == pytest.approx([entry.logprob for entry in scored])


@pytest.mark.parametrize(("params", "message"), [
    ({"guided_json": '{"not": {"type": "string"}, "uniqueItems": true}'}, r'\["not", "uniqueItems"\].*not supported'),
    ({"guided_json": '{"type": "strung"}'}, "strung"),
    ({"guided_json": '{"type": "string", "format": "isbn"}'}, "isbn"),
    ({"guided_json": "{"}, "must be a JSON schema"),
    ({"guided_json": "3"}, "must be an object or boolean"),
    ({"guided_json": "false"}, "Unsatisfiable"),
    ({"guided_json": '{"$ref": "https://example.org/schema"}'}, "example.org"),
    ({"guided_json": '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'}, "allows no text"),
    ({"guided_json": '{"items": [{"multipleOf": 20000}]}'}, "multipleOf of 20000"),
    ({"guided_regex": "(?=a)b"}, "look-around"),
    ({"guided_regex": "("}, "unclosed group"),
    ({"guided_grammar": "start: missing"}, "missing"),
    ({"guided_grammar": 'root ::= "a'}, "guided_grammar cannot be followed"),
])  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_name(llm, params, message):
    with pytest.raises(InvalidRequest, match=message) as refused:
        llm.generate("Hi", SamplingParams(**params))
    assert refused.value.param == next(iter(params))


@pytest.mark.parametrize(("params", "param"), [
    ({"guided_json": "{}", "guided_regex": "a"}, "guided_regex"),
    ({"guided_json": "{}", "min_tokens": 2}, "min_tokens"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": "abc"}, "guided_choice"),
    ({"guided_json": {"type": "string"}}, "guided_json"),
    ({"guided_regex": "\ud800"}, "guided_regex"),
])  # fmt: skip
def test_parameters_that_contradict_a_grammar_are_refused(params, param):
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**params)
    assert refused.value.param == param


# ---- in the engine, with an alphabet of single bytes ----

ALPHABET = Vocabulary([bytes([32 + token_id]) for token_id in range(90)], frozenset({0, 1, EOS}))


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


def engine_of(model, **config: object) -> Engine:
    return Engine(model, EngineConfig(**config), load_vocabulary=lambda: ALPHABET)


def text_of(token_ids: list[int]) -> str:
    return b"".join(ALPHABET.token_bytes[token_id] for token_id in token_ids if token_id != EOS).decode()


def some_requests() -> list:
    guided = [
        make_request(f"g{i}", [7, 8, 9 + i], seed=i, max_tokens=40, n=2, guided_regex="(ab|c+d){9,12}")
        for i in range(4)
    ]
    return [*guided, make_request("free", [7, 8], max_tokens=40, ignore_eos=True)]


def test_a_preempted_answer_goes_on_where_its_grammar_stood(model):
    roomy, tight = engine_of(model), engine_of(model, kv_cache_memory_bytes=2**17)
    for request in some_requests():  # so that their grammars are there, and all of them want blocks at once
        run(tight, [request])
    expected, answers = run(roomy, some_requests()), run(tight, some_requests())
    assert tight.stats().num_preemptions > 0
    assert {key: answer.bits for key, answer in answers.items()} == {
        key: answer.bits for key, answer in expected.items()
    }


def test_neighbours_change_nothing(model):
    together = run(engine_of(model), some_requests())
    for request in some_requests():
        alone = run(engine_of(model), [request])
        assert all(together[key].bits == answer.bits for key, answer in alone.items())


def test_the_answer_is_ended_as_soon_as_nothing_can_follow(model):
    answer = run(engine_of(model), [make_request("r", [5], max_tokens=20, guided_regex="abc")])["r", 0]
    assert (text_of(answer.token_ids), answer.token_ids[-1], answer.finish_reason) == ("abc", EOS, "stop")


def test_allowed_token_ids_narrow_a_grammar(model):
    request = make_request("r", [5], max_tokens=9, guided_regex="[a-z]+", allowed_token_ids=[ord("q") - 32])
    assert set(text_of(run(engine_of(model), [request])["r", 0].token_ids)) == {"q"}


def test_a_grammar_that_leaves_no_token_is_the_requests_fault(model):
    engine = engine_of(model)
    engine.add(make_request("r", [5], guided_regex="[a-z]+", allowed_token_ids=[ord("Q") - 32]))
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    assert [(output.finish_reason, output.refused_param) for output in outputs] == [("error", "guided_regex")]


def test_a_request_that_is_aborted_while_its_grammar_compiles_is_forgotten(model):
    engine = engine_of(model)
    engine.add(make_request("r", [5], guided_regex="[a-z]+"))
    engine.abort("r")
    assert not engine.has_work()


def test_a_bad_grammar_ends_all_choices_and_nobody_elses(model):
    answers = run(engine_of(model), [*some_requests(), make_request("bad", [5], n=2, guided_regex="(")])
    assert [answers["bad", choice].finish_reason for choice in (0, 1)] == ["error", "error"]
    assert answers["free", 0].finish_reason == "length"


def test_without_a_vocabulary_grammars_are_refused(model):
    answer = run(Engine(model, EngineConfig()), [make_request("r", [5], guided_regex="a")])["r", 0]
    assert "vocabulary" in answer.error


def test_a_fork_goes_its_own_way():
    grammars = Grammars(lambda: ALPHABET, vocab_size=VOCAB_SIZE, eos_ids=[EOS])
    one = grammars.state(SamplingParams(guided_regex="a[bc]d"), [ord("a") - 32])
    other = one.fork()
    other.advance([ord("b") - 32])
    grammars.fill([one, other]).result()
    assert [allowed(state.mask) for state in (one, other)] == ["bc", "d"]


def allowed(mask) -> str:
    ids = [token_id for token_id in range(VOCAB_SIZE) if mask[token_id // 32] >> (token_id % 32) & 1]
    return text_of(ids)


def test_grammars_that_were_used_long_ago_are_forgotten_and_come_back():
    grammars = Grammars(lambda: ALPHABET, vocab_size=VOCAB_SIZE, eos_ids=[EOS])
    for number in range(100):
        grammars.compile(SamplingParams(guided_regex=f"a{{{number + 1}}}")).result()
    assert len(grammars._compiled) == 64
    assert grammars.state(SamplingParams(guided_regex="a{1}"), [ord("a") - 32]).error is None
