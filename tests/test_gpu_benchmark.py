"""The command for the day a GPU is there, as far as it can be tested without one: its cases, its parts, its figures."""

import json
import sys

import pytest
import torch

from polyserve_benchmarks import gpu, gpu_attention, gpu_operations
from polyserve_benchmarks.gpu_cases import Case, Sizes, both
from polyserve_benchmarks.gpu_decode import decode
from polyserve_benchmarks.gpu_measure import measurements
from polyserve_benchmarks.gpu_timing import Limits
from polyserve_benchmarks.make_polylm import Shape, write_checkpoint
from support.gpu_operations import OPERATIONS

SMALL = Sizes(
    rows=64, sequences=3, context=256, heads=4, kv_heads=2, head_size=32, mlp=96, vocab=600, flash_block=128
)  # fmt: skip
MAKERS = [*gpu_attention.cases(SMALL, "cpu"), *gpu_operations.cases(SMALL, "cpu")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_a_line_and_ends_with_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2
    assert capsys.readouterr().out == "torch finds no GPU here: nothing was measured\n"
    assert list(tmp_path.iterdir()) == []


def test_every_operation_is_measured():
    assert {make().name for make in MAKERS} == OPERATIONS


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_compared_is_the_same(make):
    torch.manual_seed(0)
    case: Case = make()
    ours = case.ours()
    for peer in case.peers.values():
        torch.testing.assert_close(peer().float(), ours.float(), rtol=0.05, atol=0.2)  # logits are rounded in torch
    assert case.num_bytes > 0


@pytest.mark.parametrize("make", MAKERS)
def test_the_gradients_that_are_compared_are_the_same(make):
    torch.manual_seed(0)
    case: Case = make()
    if not case.leaves:
        return
    gradients = []
    for call in (case.ours, *case.peers.values()):
        torch.manual_seed(1)
        gradients.append(both(call, case.leaves)())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0.05, atol=0.2)
    assert case.both_bytes > case.num_bytes
    assert case.both_flops > case.flops


def test_each_library_is_measured_forward_and_both_ways_against_the_limit():
    case = next(case for case in (make() for make in MAKERS) if case.name == "attention_varlen")
    limits = Limits(bytes_per_second=1e9, bfloat16_flops=1e15, float32_flops=1e15)
    rows = list(measurements(case, lambda call: 1e6 * case.num_bytes / 1e9 * 2, limits))
    assert [(row.library, row.passes) for row in rows] == [
        ("polyserve", "forward"), ("polyserve", "both"), ("torch", "forward"), ("torch", "both")
    ]  # fmt: skip
    assert rows[0].percent_of_limit == pytest.approx(50)
    assert rows[0].gigabytes_per_second == pytest.approx(0.5)
    assert "attention_varlen" in rows[0].line()


PART = """
import json, sys
file, first = open(sys.argv[1], "a"), int(sys.argv[2])
for number in range(first, 4):
    print(json.dumps({"begins": number, "what": f"case {number}"}), file=file, flush=True)
    if number == 1:
        sys.exit(7)
    print(json.dumps({"found": number}), file=file, flush=True)
"""


def test_a_part_that_fails_at_a_case_goes_on_with_the_next(monkeypatch, tmp_path):
    (tmp_path / "failing_part.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    part = gpu.run_module("failing_part", 60)
    assert part.results == [{"found": 0}, {"found": 2}, {"found": 3}]
    assert part.failures == ["failing_part ended with 7 at case 1"]


def test_a_part_that_takes_too_long_is_stopped_and_leaves_what_it_had(monkeypatch, tmp_path):
    (tmp_path / "slow_part.py").write_text(PART.replace("sys.exit(7)", "import time; time.sleep(60)"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    part = gpu.run_module("slow_part", 3)
    assert part.results == [{"found": 0}]
    assert part.failures == ["slow_part ran out of its 3 s at case 1"]


def test_tests_are_counted_and_those_that_failed_are_named():
    report = """<testsuites><testsuite>
        <testcase classname="a" name="one"/><testcase classname="a" name="two"><failure message="no"/></testcase>
        <testcase classname="b" name="three"><skipped/></testcase>
    </testsuite></testsuites>"""
    assert gpu.read_test_report(report) == ([{"passed": 1, "failed": 1, "skipped": 1}], ["a.two"])


def test_parts_hand_on_the_time_that_they_leave_and_take_less_than_nine_minutes(monkeypatch, tmp_path):
    given = {}

    def run(part: str, seconds: float) -> gpu.Part:
        given[part] = seconds
        return gpu.Part([], [], {"operations": 100.0, "decode": 260.0, "tests": 1.0}[part])

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "device", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 0
    assert given == {"operations": 150, "decode": 250, "tests": 170}
    assert list(json.loads((tmp_path / "out.json").read_text()))[-3:] == list(given)
    assert sum(gpu.SECONDS.values()) < 9 * 60


def test_tests_that_were_stopped_before_all_had_run_are_a_failure(monkeypatch, tmp_path):
    (tmp_path / "test_long.py").write_text("""import pytest, time
@pytest.mark.gpu
@pytest.mark.parametrize("number", range(50))
def test_long(number):
    time.sleep(0.5)
""")
    monkeypatch.setattr(gpu, "TEST_PROCESSES", 0)  # none but pytest's own
    monkeypatch.setattr(gpu, "LAST_SECONDS", 60)
    part = gpu.run_tests(61, str(tmp_path))
    assert 0 < part.results[0]["passed"] < 50
    assert part.failures[-1].startswith("the tests ended with ")


def test_decoding_is_measured_at_each_number_of_streams(tmp_path):
    shape = Shape(layers=2, hidden_size=32, heads=2, vocab_size=400)
    write_checkpoint(tmp_path, shape, repeat=True)
    found = list(decode(tmp_path, 1e9, device="cpu", streams=(1, 2), output_len=4))
    assert [decoded.num_streams for decoded in found] == [1, 2]
    for decoded in found:
        assert decoded.tokens_per_second == pytest.approx(1e3 * decoded.num_streams / decoded.step_ms)
        assert decoded.percent_of_limit == pytest.approx(100 * decoded.gigabytes_per_second)
