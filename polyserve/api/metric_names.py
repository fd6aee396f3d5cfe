"""The metrics under the names that vLLM gives them, so that dashboards, autoscalers and gateways made for it work here.

Source   https://docs.vllm.ai/en/latest/usage/metrics.html;  what the Gateway API inference extension needs of a server:
         https://github.com/kubernetes-sigs/gateway-api-inference-extension, docs/proposals/003-model-server-protocol
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

NAMES = {  # ours -> vLLM's
    "num_requests_running": ("num_requests_running",),
    "num_requests_waiting": ("num_requests_waiting",),
    "kv_cache_usage_ratio": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "prefix_cache_queries": ("prefix_cache_queries",),
    "prefix_cache_hits": ("prefix_cache_hits",),
    "num_preemptions": ("num_preemptions",),
    "prompt_tokens": ("prompt_tokens",),
    "generation_tokens": ("generation_tokens",),
    "request_success": ("request_success",),
    "time_to_first_token_seconds": ("time_to_first_token_seconds",),
    "inter_token_latency_seconds": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "e2e_request_latency_seconds": ("e2e_request_latency_seconds",),
    "request_queue_time_seconds": ("request_queue_time_seconds",),
    "request_prefill_time_seconds": ("request_prefill_time_seconds",),
    "request_decode_time_seconds": ("request_decode_time_seconds",),
    "request_prompt_tokens": ("request_prompt_tokens",),
    "request_generation_tokens": ("request_generation_tokens",),
}


class VllmNames:
    """A registry's metrics under their other names, each with the label `model_name`."""

    def __init__(self, registry: CollectorRegistry, *, model_name: str) -> None:
        self._registry = registry
        self._model = {"model_name": model_name}

    def collect(self) -> Iterable[Metric]:
        for ours in self._registry.collect():
            for name in NAMES.get(ours.name.removeprefix("polyserve_"), ()):
                renamed = Metric(f"vllm:{name}", ours.documentation, ours.type)
                for sample in ours.samples:
                    suffix = sample.name.removeprefix(ours.name)
                    if suffix == "_created":  # when it began to count, which nobody asks under these names
                        continue
                    renamed.add_sample(f"vllm:{name}{suffix}", {**sample.labels, **self._model}, sample.value)
                yield renamed
