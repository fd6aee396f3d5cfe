"""PolyServe as `polyserve.LLM`, in this process. Prefix cache off: no prompt comes twice, and nobody else keeps one.

What is not named here has its default. The cache holds every stream at its longest, as the others' does.
"""

from typing import Any

DEFAULT_KV_BYTES = 2**30


class PolyServe:
    def __init__(self, job: dict[str, Any]) -> None:
        from polyserve import LLM, SamplingParams, __version__
        from polyserve.config import EngineConfig

        options: dict[str, Any] = {
            "threads": job["threads"],
            "max_num_seqs": job["max_streams"],
            "max_model_len": job["max_len"],
            "kv_cache_memory_bytes": max(job["kv_bytes"], DEFAULT_KV_BYTES),
            "enable_prefix_caching": False,
            **job["options"],
        }
        self.version = __version__
        self.settings: dict[str, object] = dict(options)
        self._params = SamplingParams
        self._llm = LLM(job["model"], config=EngineConfig(**options))

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = self._params(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        answers = self._llm.generate(prompts, params, use_tqdm=False)
        return [answer.outputs[0].token_ids for answer in answers]


def load(job: dict[str, Any]) -> PolyServe:
    return PolyServe(job)
