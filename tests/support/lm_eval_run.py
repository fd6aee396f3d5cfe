"""As a program, `lm_eval_run.py BASE_URL FOLDER`: run FOLDER's task `tiny` with lm-evaluation-harness against a server.

Writes FOLDER/samples.json. A process of its own, since the harness is large and warns a lot; only this task is loaded,
because finding the thousands that it brings takes longer than all the rest.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    base_url, folder = sys.argv[1], Path(sys.argv[2])
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={"model": "tiny", "base_url": base_url, "max_length": 128},
        batch_size=2,
        tasks=["tiny"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = results["samples"]["tiny"]
    found = [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    accuracy = results["results"]["tiny"]["acc,none"]
    (folder / "samples.json").write_text(json.dumps({"accuracy": accuracy, "answers": found}))


if __name__ == "__main__":
    main()
