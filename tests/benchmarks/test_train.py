"""The comparison with a plain loop compares the same training: from the same weights, the same losses."""

import pytest

from polyserve_benchmarks.train import Workload, run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_loops_learn_the_same(dtype, capsys):
    document = run(
        Workload(
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            vocab_size=300,
            rows=2,
            context=32,
            steps=4,
            dtype=dtype,
            threads=1,
        )
    )
    losses = document["losses"]
    assert losses["ours"][0] == pytest.approx(losses["plain"][0], rel=1e-6 if dtype == "float32" else 5e-3)
    assert losses["ours"] == pytest.approx(losses["plain"], rel=5e-3)  # the plain loop decays norms and biases too
    assert len(losses["ours"]) == len(document["step_seconds"]["plain"]) == 4
    assert document["ratio"] == pytest.approx(
        document["tokens_per_second"]["ours"] / document["tokens_per_second"]["plain"], abs=0.01
    )
    assert "ours / plain" in capsys.readouterr().out
