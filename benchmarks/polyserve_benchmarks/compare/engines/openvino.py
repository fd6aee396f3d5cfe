"""OpenVINO GenAI as `LLMPipeline`, which reads a GGUF file itself, with its paged-attention scheduler.

What it does by itself is its best: products of 4- and 8-bit weights with activations quantised to int8, and on most
processors a KV cache in int8. LATENCY is the hint for one pipeline that gets all threads.
Source   https://docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai.html
"""

import math
from importlib.metadata import version
from typing import Any

BYTES_PER_GIB = 2**30


class OpenVINO:
    def __init__(self, job: dict[str, Any]) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy: Any = numpy
        self._openvino: Any = openvino
        self._genai: Any = openvino_genai
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size = max(1, math.ceil(job["kv_bytes"] / BYTES_PER_GIB))
        scheduler.max_num_seqs = job["max_streams"]
        scheduler.enable_prefix_caching = False
        properties = {
            "INFERENCE_NUM_THREADS": job["threads"],
            "PERFORMANCE_HINT": "LATENCY",
            **job["options"],
        }
        self._pipeline = self._genai.LLMPipeline(job["model"], "CPU", scheduler_config=scheduler, **properties)
        self.version = version("openvino-genai")
        self.settings: dict[str, object] = {
            **properties,
            "max_num_seqs": job["max_streams"],
            "enable_prefix_caching": False,
        }

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        ids = self._numpy.array(prompts, dtype=self._numpy.int64)  # [S, T]: prompts of one run are of one length
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        inputs = self._genai.TokenizedInputs(
            self._openvino.Tensor(ids), self._openvino.Tensor(self._numpy.ones_like(ids))
        )
        return [list(map(int, tokens)) for tokens in self._pipeline.generate(inputs, config).tokens]


def load(job: dict[str, Any]) -> OpenVINO:
    return OpenVINO(job)
