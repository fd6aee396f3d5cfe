"""The figures of `polyserve bench throughput`, from arrivals made up here."""

import pytest

from polyserve_benchmarks.throughput import Limit, summary
from polyserve_benchmarks.workload import Workload, random_prompts

LIMIT = Limit(weight_bytes=10**9, bytes_per_second=2e10)  # 20 steps/s


def test_one_stream():
    measured = summary(10.0, [[10.5, 10.6, 10.7, 10.8]], input_len=100, limit=LIMIT)
    assert measured.output_throughput == pytest.approx(4 / 0.8)
    assert measured.prompt_throughput == pytest.approx(100 / 0.5)
    assert measured.median_ttft_ms == pytest.approx(500)
    assert measured.median_step_ms == pytest.approx(100)
    assert measured.percent_of_limit == pytest.approx(50)


def test_steps_count_only_while_every_stream_generates():
    early = [1.0, 2.0, 3.0, 3.1]  # slow while the other's prompt is computed
    late = [3.0, 3.1, 6.0, 10.0]  # and slow again, alone
    measured = summary(0.0, [early, late], input_len=8, limit=LIMIT)
    assert measured.median_step_ms == pytest.approx(100)
    assert measured.max_ttft_ms == pytest.approx(3000)
    assert measured.mean_ttft_ms == pytest.approx(2000)
    assert measured.prompt_throughput == pytest.approx(16 / 3)
    assert measured.output_throughput == pytest.approx(8 / 10)


def test_answers_of_one_token_show_no_step():
    measured = summary(0.0, [[1.0]], input_len=8, limit=LIMIT)
    assert measured.median_step_ms is None
    assert measured.percent_of_limit is None


def test_the_seed_alone_decides_the_prompts():
    sizes = {"length": 8, "vocab_size": 50}
    assert random_prompts(3, **sizes, seed=1) == random_prompts(3, **sizes, seed=1)
    assert random_prompts(3, **sizes, seed=1) != random_prompts(3, **sizes, seed=2)


def test_no_two_prompts_begin_alike():
    prompts = random_prompts(40, length=3, vocab_size=50, seed=0)
    assert len({prompt[0] for prompt in prompts}) == 40
    assert {len(prompt) for prompt in prompts} == {3}
    assert all(0 <= token_id < 50 for prompt in prompts for token_id in prompt)


@pytest.mark.parametrize("field", ["input_len", "output_len"])
def test_a_workload_without_tokens_is_refused(field):
    with pytest.raises(ValueError, match=f"^{field} must be at least 1, got 0$"):
        Workload(**{field: 0})
    with pytest.raises(ValueError, match=r"^num_streams must be at least 1, got 0$"):
        Workload(num_streams=[8, 0])
