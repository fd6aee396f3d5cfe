"""Fine-tuning learns answers alone, behind the very ids that the server puts before them, with their end."""

import json
import math
from pathlib import Path

import pytest

from polyserve.cli.main import main
from polyserve.errors import TrainingError
from polyserve.llm import LLM
from polyserve.sampling_params import SamplingParams
from polyserve.tokenizer.base import Tokenizer
from polyserve.tokenizer.load import load_tokenizer
from polyserve_training.data.chat_rows import Answer, answers_of, open_conversations
from polyserve_training.data.conversations import Conversation, read_conversations
from polyserve_training.data.packing import IGNORED
from polyserve_training.run_log import read_log
from support.checkpoints import make_checkpoint
from support.training_runs import write_recipe

QUESTION = {"role": "user", "content": "Wo liegt Berlin?\nSag es kurz."}
ANSWER = {"role": "assistant", "content": "In Deutschland."}
AGAIN = {"role": "user", "content": "Und Paris?"}
MESSAGES = [QUESTION, ANSWER, AGAIN, {"role": "assistant", "content": "In Frankreich. </s> "}]
TURNS = [{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in MESSAGES]
ENDS_ITSELF = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizers(tokenizer_folder, tmp_path_factory) -> dict[str, Tokenizer]:
    own = tmp_path_factory.mktemp("template") / "own.jinja"
    own.write_text(ENDS_ITSELF)
    names = {"polylm-chat": "polylm-chat", "polylm-multialpaca": "polylm-multialpaca", "ends itself": str(own)}
    return {name: load_tokenizer(tokenizer_folder, chat_template=template) for name, template in names.items()}


def write(path: Path, *objects: object) -> Path:
    path.write_text("".join(json.dumps(fields) + "\n" for fields in objects))
    return path


def chat_arguments(tmp_path: Path, tokenizer: Path, data: Path, chats: Path) -> list[str]:
    """`polyserve train` on these conversations, a row a step."""
    recipe = write_recipe(tmp_path, tokenizer=tokenizer, data=data)
    chat = f"chat={{sources: {{own: {chats}}}, template: polylm-chat}}"
    stages = "stages=[{name: sft, steps: 40}]"
    return [str(recipe), "data=null", chat, stages, "block=1", "batch={rows: 1, context: 200}"]


def ids(sample: Answer) -> tuple[list[int], list[int]]:
    return sample.prompt_ids, sample.answer_ids


def conversation(messages: list[dict[str, str]]) -> Conversation:
    return Conversation(messages, "de", "x.jsonl: line 1")


@pytest.mark.parametrize("template", ["polylm-chat", "polylm-multialpaca", "ends itself"])
def test_a_sample_is_the_servers_prompt_and_the_answer_with_its_end(template, tokenizers):
    tokenizer = tokenizers[template]
    samples = answers_of(conversation(MESSAGES), tokenizer)
    assert len(samples) == 2
    for sample, number in zip(samples, (1, 3), strict=True):
        prompt = tokenizer.render_chat(MESSAGES[:number])  # as polyserve.llm and the server do
        assert sample.prompt_ids == tokenizer.encode(prompt, add_special_tokens=False)
        *answer, stop = sample.answer_ids
        assert tokenizer.decode(answer, skip_special_tokens=False) == MESSAGES[number]["content"]
        assert stop == tokenizer.eos_id
        assert not tokenizer.special_ids.intersection(answer)  # what an answer spells does not end it


def test_the_loss_counts_answers_alone(tokenizers):
    [sample, _] = answers_of(conversation(MESSAGES), tokenizers["polylm-chat"])
    packed = sample.packed()
    learned = [int(token) for token in packed.targets if token != IGNORED]
    assert learned == sample.answer_ids
    assert packed.token_ids.tolist() == [*sample.prompt_ids, *sample.answer_ids[:-1]]
    assert (packed.targets[: len(sample.prompt_ids) - 1] == IGNORED).all()


def test_every_shape_of_conversation_is_read(tmp_path):
    alpaca = {"instruction": QUESTION["content"], "input": None, "output": ANSWER["content"]}
    path = write(tmp_path / "de.jsonl", {"messages": MESSAGES}, {"conversations": TURNS}, alpaca)
    found = [conversation.messages for conversation in read_conversations(path)]
    assert found == [MESSAGES, MESSAGES, [QUESTION, ANSWER]]
    assert {conversation.language for conversation in read_conversations(path)} == {"de"}


def test_an_input_stands_on_a_line_below_its_instruction(tmp_path):
    rows = [{"instruction": "Add", "input": text, "output": "3"} for text in ("1 2", "", "<noinput>")]
    found = read_conversations(write(tmp_path / "alpaca_data.jsonl", *rows))
    asked = [(c.messages[0]["content"], c.language) for c in found]
    assert asked == [("Add\n1 2", "und"), ("Add", "und"), ("Add", "und")]


def test_rows_hold_every_sample_whole_and_once(tokenizers, tmp_path):
    objects = [{"instruction": "x " * (n % 9), "input": "", "output": f"{n} " * (1 + n % 13)} for n in range(60)]
    path = write(tmp_path / "fr.jsonl", *objects)
    rows, _ = open_conversations(path, tokenizers["polylm-chat"], context=80, seed=0)
    placed = [sample for row in rows["fr"].rows for sample in row]
    expected = [s for c in read_conversations(path) for s in answers_of(c, tokenizers["polylm-chat"])]
    assert sorted(placed, key=ids) == sorted(expected, key=ids)
    lengths = [len(rows["fr"].row(number).token_ids) for number in range(rows["fr"].num_rows)]
    assert max(lengths) <= 80
    assert sum(lengths) / len(lengths) > 0.8 * 80
    assert sum(lengths) == rows["fr"].num_tokens
    again, _ = open_conversations(path, tokenizers["polylm-chat"], context=80, seed=0)
    assert again == rows


def test_samples_in_a_row_do_not_see_each_other(tokenizers, tmp_path):
    rows, _ = open_conversations(
        write(tmp_path / "de.jsonl", {"messages": MESSAGES}), tokenizers["polylm-chat"], context=500, seed=0
    )
    [samples] = rows["de"].rows
    packed = rows["de"].row(0)
    assert packed.cu_seqlens.tolist() == [0, samples[0].num_inputs, samples[0].num_inputs + samples[1].num_inputs]
    assert packed.positions[samples[0].num_inputs] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [QUESTION]}, "line 1: has no answer to learn from"),
        ({"text": "x"}, "line 1: must have messages, conversations, or instruction and output"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "line 1: each turn must have role (human, user, gpt,"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "line 1: each turn must have from"),
        ({"instruction": 3, "output": "x"}, "line 1: instruction, input and output must be strings"),
        (
            {"messages": [{"role": "system", "content": "x"}, QUESTION, ANSWER]},
            "line 1: the chat template refuses these messages",
        ),
    ],
)
def test_a_line_that_is_no_conversation_is_named(fields, message, tokenizers, tmp_path):
    path = write(tmp_path / "de.jsonl", fields)
    with pytest.raises(TrainingError) as error:
        open_conversations(path, tokenizers["polylm-chat"], context=100, seed=0)
    assert f"{path}: " in error.value.message
    assert message in error.value.message


def test_a_template_that_rewrites_what_was_said_is_refused(tokenizer_folder, tmp_path):
    (tmp_path / "odd.jinja").write_text("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = load_tokenizer(tokenizer_folder, chat_template=str(tmp_path / "odd.jinja"))
    with pytest.raises(TrainingError, match="what is trained would not be what is served"):
        answers_of(conversation(MESSAGES), tokenizer)


def test_samples_that_are_too_long_for_any_row_are_an_error_that_says_so(tokenizers, tmp_path):
    path = write(tmp_path / "de.jsonl", {"messages": MESSAGES})
    with pytest.raises(TrainingError, match="no answer with its prompt fits a row of 5 tokens"):
        open_conversations(path, tokenizers["polylm-chat"], context=5, seed=0)


def test_a_stop_token_that_the_served_model_does_not_know_is_named_before_anything_is_computed(
    tmp_path, tokenizer_folder, data_folder, capsys
):
    model = tmp_path / "other"
    make_checkpoint(model, "llama")
    config = json.loads((model / "config.json").read_text()) | {"vocab_size": 600, "eos_token_id": 7}
    (model / "config.json").write_text(json.dumps(config))
    (model / "generation_config.json").unlink(missing_ok=True)
    path = write(tmp_path / "de.jsonl", {"messages": MESSAGES})
    arguments = chat_arguments(tmp_path, tokenizer_folder, data_folder, path)
    arguments += [f"model={{path: {model}}}", "batch.context=120"]
    assert main(["train", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "chat: answers of own/de end with token 2, at which the model would not stop: its eos_token_id is 7" in line
    (model / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')  # what a server goes by
    assert main(["train", *arguments, "--check"]) == 0


def test_validation_counts_answers_alone_and_their_ends_by_themselves(tmp_path, tokenizer_folder, data_folder, capsys):
    path = write(tmp_path / "de.jsonl", {"messages": MESSAGES})
    arguments = chat_arguments(tmp_path, tokenizer_folder, data_folder, path)
    validation = f"validation={{sources: {{held: {path}}}, every: 1}}"
    assert main(["train", *arguments, "optimizer.lr=5e-3", validation]) == 0
    judged = [line["validation"]["held/de"] for line in read_log(tmp_path / "run") if "validation" in line]
    tokenizer = load_tokenizer(tokenizer_folder, chat_template="polylm-chat")
    samples = answers_of(conversation(MESSAGES), tokenizer)
    assert judged[0]["tokens"] == sum(len(sample.answer_ids) for sample in samples)
    answer_bytes = sum(len(message["content"].encode()) for message in MESSAGES if message["role"] == "assistant")
    bits = judged[0]["loss"] / math.log(2) * judged[0]["tokens"] / answer_bytes
    assert judged[0]["bits_per_byte"] == pytest.approx(bits)
    assert judged[-1]["stop_loss"] < judged[0]["stop_loss"] / 2


def test_a_model_learns_to_answer_and_to_stop_and_is_served_with_its_template(
    tmp_path, tokenizer_folder, data_folder, capsys
):
    pairs = {"Wo liegt Berlin?": "In Deutschland.", "Où est Paris ?": "En France.", "東京は？": "日本です。"}
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs.items()
    ]
    write(tmp_path / "chats.jsonl", *chats)
    arguments = chat_arguments(tmp_path, tokenizer_folder, data_folder, tmp_path / "chats.jsonl")
    assert main(["train", *arguments, "stages.0.steps=120", "optimizer.lr=5e-3", "checkpoints.every=100"]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    llm = LLM(str(tmp_path / "model"))
    for question, answer in pairs.items():
        [output] = llm.chat([{"role": "user", "content": question}], SamplingParams(max_tokens=40, temperature=0))
        assert output.outputs[0].text == answer
        assert output.outputs[0].finish_reason == "stop"
