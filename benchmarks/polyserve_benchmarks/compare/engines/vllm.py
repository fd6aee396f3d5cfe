"""vLLM's CPU build as `vllm.LLM`: compiled (not eager), threads bound to cores, no core kept free, no prefix cache.

vLLM preloads the OpenMP library and the tcmalloc that its package brings into the process of its engine by itself. It
sets the threads of its kernels by itself too, and says that OMP_NUM_THREADS would slow what surrounds them.
Source   https://docs.vllm.ai/en/latest/getting_started/installation/cpu.html, "Related runtime environment variables"
"""

import math
import os
from importlib.metadata import version
from typing import Any

BYTES_PER_GIB = 2**30


class VLLM:
    def __init__(self, job: dict[str, Any]) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)
        cores = sorted(os.sched_getaffinity(0))[: job["threads"]]
        kv_gib = max(1, math.ceil(job["kv_bytes"] / BYTES_PER_GIB))
        os.environ.update(
            {
                "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
                "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            }
        )
        from vllm import LLM, SamplingParams

        self._params: Any = SamplingParams
        self._llm: Any = LLM(
            job["model"],
            dtype="bfloat16",
            max_model_len=job["max_len"],
            max_num_seqs=job["max_streams"],
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )
        self.version = version("vllm-cpu")
        self.settings: dict[str, object] = {
            "dtype": "bfloat16",
            "threads": len(cores),
            "kv_cache_gib": kv_gib,
            "enforce_eager": False,
            "enable_prefix_caching": False,
        }

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = self._params(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def load(job: dict[str, Any]) -> VLLM:
    return VLLM(job)
