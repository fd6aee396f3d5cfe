"""Commands that start an engine process of their own: `chat` without --url, and `bench throughput`."""

import io
import json
import re

import pytest

from polyserve.cli.main import main

OPTIONS = ("--dtype", "float32", "--threads", "1")
CHAT = ("--temperature", "0", "--max-tokens", "6", "--chat-template", "polylm-chat", *OPTIONS)


def test_chat_says_what_generate_answers_to_the_same_conversation(tiny_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("the bird\nsnow\n"))
    assert main(["chat", str(tiny_model_folder), *CHAT]) == 0
    said = capsys.readouterr().out
    conversation = [{"role": "user", "content": "the bird"}]
    answered = ""
    for question in ("snow", None):
        requests = tmp_path / "in.jsonl"
        requests.write_text(json.dumps({"messages": conversation}) + "\n")
        assert main(["generate", str(tiny_model_folder), "-i", str(requests), *CHAT]) == 0
        answer = json.loads(capsys.readouterr().out)["outputs"][0]["text"]
        answered += answer + "\n"
        conversation += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    assert said == answered


def test_bench_prints_a_line_for_each_number_of_streams_and_one_json_document_last(tiny_model_folder, capsys):
    lengths = ("--input-len", "6", "--output-len", "5")
    assert main(["bench", "throughput", str(tiny_model_folder), "--num-streams", "1,3", *lengths, *OPTIONS]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert [int(line.split()[0]) for line in table[-2:]] == [1, 3]
    assert [result["num_streams"] for result in document["results"]] == [1, 3]
    assert [result["total_output_tokens"] for result in document["results"]] == [5, 15]
    assert [result["total_input_tokens"] for result in document["results"]] == [6, 18]
    assert document["config"]["dtype"] == "float32"
    assert document["workload"]["seed"] == 0
    assert {"polyserve", "python", "torch"} <= document["versions"].keys()
    assert {"cpu", "cores", "memory_bytes"} <= document["machine"].keys()
    for result in document["results"]:
        assert result["output_throughput"] == pytest.approx(result["total_output_tokens"] / result["duration"])
        # a step of so small a model may be too short to be seen
        assert (result["percent_of_limit"] is None) == (result["median_step_ms"] is None)
        assert result["percent_of_limit"] is None or result["percent_of_limit"] > 0


def test_bench_refuses_what_the_model_is_too_short_for(tiny_model_folder, capsys):
    assert main(["bench", "throughput", str(tiny_model_folder), "--input-len", "100000", *OPTIONS]) == 2
    shown = capsys.readouterr().err
    assert re.match(r"polyserve: 100000 tokens in and 64 out are 100064 in all; this model takes \d+\n", shown)


def test_a_model_that_is_not_there_is_one_line(capsys):
    for command in (["chat"], ["bench", "throughput"], ["serve", "--port", "0", "--grpc-port", "0"]):
        assert main([*command, "./no-such-model"]) == 2
        assert capsys.readouterr().err == "polyserve: ./no-such-model: no such file or folder\n"
