"""The figures of a comparison, from seconds made up here, and the table that is made of a document."""

import json
import sys

import pytest

from polyserve_benchmarks.compare.figures import Limits, medians, percents, rates, ratios
from polyserve_benchmarks.compare.plan import Run
from polyserve_benchmarks.compare.table import between_marks, main, markdown

PROMPT, WHOLE = Run(2, 100, 1), Run(2, 100, 11)
LIMITS = Limits(bytes_per_second=2e10, flops_per_second=1e12, step_bytes=10**9, token_flops=10**9)
DOCUMENT = {
    "model": "smollm2",
    "precision": "Q4_1",
    "threads": 2,
    "rounds": 3,
    "workload": {"input_len": 128, "output_len": 64},
    "limits": {"bytes_per_second": 31.2e9, "flops_per_second": 0.46e12, "step_bytes": 97_000_000},
    "machine": {"cpu": "A processor"},
    "first": "polyserve",
    "engines": {
        "polyserve": {
            "version": "0.1.0",
            "start_seconds": 1.25,
            "tokens_per_second": {"prompt_128": 1500.0, "decode_1": 250.0, "output_1": 200.0},
            "percent_of_limit": {"prompt_128": 69.2, "decode_1": 77.7},
            "first_is_faster_by": {"prompt_128": 1.0, "decode_1": 1.0, "output_1": 1.0},
        },
        "vllm": {
            "version": "0.32.0",
            "start_seconds": 60.0,
            "tokens_per_second": {"prompt_128": 1000.0, "decode_1": 100.0, "output_1": 90.0},
            "percent_of_limit": {"prompt_128": 46.1, "decode_1": 31.1},
            "first_is_faster_by": {"prompt_128": 1.5, "decode_1": 2.5, "output_1": 2.22},
        },
    },
    "left_out": {"openvino": "it is not installed"},
}


def test_decoding_is_what_a_run_takes_beyond_its_prompts():
    by_name = rates([PROMPT, WHOLE], {PROMPT: [1.0, 2.0], WHOLE: [3.0, 3.0]})
    assert by_name["decode_2"] == [pytest.approx(2 * 10 / 2.0), pytest.approx(2 * 10 / 1.0)]
    assert by_name["output_2"] == [pytest.approx(2 * 11 / 3.0)] * 2


def test_prompts_are_timed_with_one_stream_alone():
    one = Run(1, 128, 1)
    by_name = rates([one, PROMPT, WHOLE], {one: [0.5], PROMPT: [1.0], WHOLE: [3.0]})
    assert by_name["prompt_128"] == [256.0]
    assert set(by_name) == {"prompt_128", "decode_2", "output_2"}


def test_medians_are_over_rounds():
    assert medians({"decode_1": [1.0, 9.0, 2.0]}) == {"decode_1": 2.0}


def test_a_ratio_is_taken_within_a_round():
    fast, slow = {"decode_1": [100.0, 50.0, 100.0]}, {"decode_1": [50.0, 20.0, 40.0]}
    assert ratios(fast, slow) == {"decode_1": 2.5}


def test_decoding_is_held_against_memory_by_the_step():
    shares = percents({"decode_1": 10.0, "decode_8": 80.0, "output_8": 80.0}, LIMITS)
    assert shares == {"decode_1": pytest.approx(50.0), "decode_8": pytest.approx(50.0)}


def test_prompts_are_held_against_the_matrix_rate():
    assert percents({"prompt_128": 250.0}, LIMITS) == {"prompt_128": pytest.approx(25.0)}


def test_the_table_has_a_row_an_engine():
    assert markdown(DOCUMENT).splitlines()[2:] == [
        "| engine | prompt of 128 | 1 stream | 1 stream, prompts included | ready after |",
        "| --- | --- | --- | --- | --- |",
        "| polyserve 0.1.0 | 1,500.0 (69 %) | 250.0 (78 %) | 200.0 | 1.2 s |",
        "| vllm 0.32.0 | 1,000.0 (46 %) 1.50x | 100.0 (31 %) 2.50x | 90.0 2.22x | 60.0 s |",
        "",
        "Left out: openvino (it is not installed).",
    ]


def test_the_caption_says_what_the_machine_allows():
    caption = markdown(DOCUMENT).splitlines()[0]
    assert caption.startswith("**smollm2, Q4_1**: 128 tokens in, 64 out, greedy, 2 threads, medians of 3 rounds.")
    assert caption.endswith("A processor: memory read at 31.2 GB/s, products at 0.46 TFLOP/s; a step reads 97 MB.")


def test_only_what_lies_between_the_marks_is_replaced(tmp_path, monkeypatch):
    page, saved = tmp_path / "README.md", tmp_path / "compare.json"
    page.write_text("before\n<!-- compare -->\nold\n<!-- end of compare -->\nafter\n", encoding="utf-8")
    saved.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["table", str(saved), "--into", str(page)])
    main()
    main()
    table = markdown(DOCUMENT)
    expected = f"before\n<!-- compare -->\n\n{table}\n\n<!-- end of compare -->\nafter\n"
    assert page.read_text(encoding="utf-8") == expected


def test_a_page_without_marks_is_left_alone():
    with pytest.raises(ValueError, match="there must be a line <!-- compare --> and after it"):
        between_marks("<!-- end of compare --> <!-- compare -->", "table")
