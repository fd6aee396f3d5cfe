"""CTranslate2 as `Generator`. It reads a format of its own: `prepare` converts the folder once, into the cache folder.

Its generator takes tokens as strings. Only ids are compared here, so the converted model's vocabulary is the ids
themselves, written as numbers, and no tokenizer is needed. One batch at a time on all threads (intra_threads), as its
documentation advises for latency; its generator has no other way to put several streams into one step.
Source   https://opennmt.net/CTranslate2/performance.html
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any


class _Ids:
    """A tokenizer whose tokens are the ids."""

    bos_token = eos_token = unk_token = "0"

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def get_vocab(self) -> dict[str, int]:
        return {str(token_id): token_id for token_id in range(self._num_tokens)}


def prepare(job: dict[str, Any]) -> None:
    """Convert the model, unless it is there already. The job's model becomes the converted folder."""
    import transformers
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):  # type: ignore[misc]  # the package has no types
        def load_tokenizer(self, _class: type[Any], model_name_or_path: str, **_options: Any) -> _Ids:
            return _Ids(transformers.AutoConfig.from_pretrained(model_name_or_path).vocab_size)

    compute_type = job["options"]["compute_type"]
    folder = Path(job["cache"]) / f"ctranslate2-{compute_type}"
    if not (folder / "model.bin").is_file():
        Converter(job["model"], low_cpu_mem_usage=True).convert(str(folder), quantization=compute_type, force=True)
    job["model"] = str(folder)


class CTranslate2:
    def __init__(self, job: dict[str, Any]) -> None:
        import ctranslate2

        self._generator: Any = ctranslate2.Generator(
            job["model"],
            device="cpu",
            compute_type=job["options"]["compute_type"],
            inter_threads=1,
            intra_threads=job["threads"],
        )
        self.version = version("ctranslate2")
        self.settings: dict[str, object] = {
            "compute_type": self._generator.compute_type,
            "inter_threads": 1,
            "intra_threads": job["threads"],
        }

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        tokens = [[str(token_id) for token_id in prompt] for prompt in prompts]
        results = self._generator.generate_batch(
            tokens, max_length=num_tokens, min_length=num_tokens, sampling_topk=1, include_prompt_in_result=False
        )
        return [list(result.sequences_ids[0]) for result in results]


def load(job: dict[str, Any]) -> CTranslate2:
    return CTranslate2(job)
