"""What a model asks of the machine, from the shapes in its file: bytes of a step, operations of a prompt token.

A step reads each weight once, but for the tables that are only looked up (positions; the embedding if it is not the
head as well). For int8 and int4 the bytes of the elements alone count, which favours nobody: scales come on top. Keys
and values are left out: at these lengths they are a few percent.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from polyserve.config import EngineConfig
from polyserve.errors import ModelLoadError
from polyserve.gguf import read_gguf
from polyserve.model.config import ModelConfig
from polyserve.model.families import read_config
from polyserve_benchmarks.compare.plan import Run

KV_ROOM = 1.25
BITS = {"int8": 8, "int4": 4}
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}
SCALE_BYTES = 4
SAFETENSORS = "model*.safetensors"
HEADS = ("output.weight", "lm_head.weight")
WORDS = ("token_embd.weight", "wte.weight", "embed_tokens.weight", "word_embeddings.weight")
POSITIONS = ("position_embd.weight", "wpe.weight")


@dataclass(frozen=True, slots=True)
class Weight:
    name: str
    shape: tuple[int, ...]
    num_bytes: int

    def is_one_of(self, names: tuple[str, ...]) -> bool:
        """Whether this is its name, with or without what checkpoints put before it."""
        return any(self.name == name or self.name.endswith(f".{name}") for name in names)


def kv_bytes(path: Path, runs: list[Run], dtype: str = "bfloat16") -> int:
    """Memory of the keys and values of the largest run, with room for what engines round up."""
    config = read_config(path)
    per_token = config.num_layers * _kv_bytes_of_a_token(config, dtype)
    return int(KV_ROOM * per_token * max(run.num_streams * (run.input_len + run.num_tokens) for run in runs))


def kv_bytes_read(config: ModelConfig, context: int, dtype: str = "bfloat16") -> int:
    """Bytes of keys and values that one sequence's step reads after `context` tokens: a layer's window of them."""
    return sum(tokens_seen(config, context)) * _kv_bytes_of_a_token(config, dtype)


def _kv_bytes_of_a_token(config: ModelConfig, dtype: str) -> int:
    """In one layer. Small numbers have a scale a head."""
    head = config.head_size * ELEMENT_BYTES[dtype] + (SCALE_BYTES if ELEMENT_BYTES[dtype] == 1 else 0)
    return 2 * config.num_kv_heads * head


def attention_flops(config: ModelConfig, context: int) -> int:
    """Operations of one token's attention after `context` others: a product for scores, and one for values."""
    return sum(tokens_seen(config, context)) * 4 * config.num_heads * config.head_size


def tokens_seen(config: ModelConfig, context: int) -> list[int]:
    """In each layer."""
    return [min(context, config.window(layer) or context) for layer in range(config.num_layers)]


def step_bytes(path: Path, precision: str) -> int:
    """Bytes of weights that one step of decoding reads."""
    return sum(_bytes_at(weight, precision) for weight in _read_in_a_step(list(_weights(path))))


def served_bytes(path: Path, config: EngineConfig) -> int:
    """The same where PolyServe serves a checkpoint with `config`, which may keep its integers, or make others."""
    if config.quantization in BITS:
        return step_bytes(path, config.quantization)
    if config.quantization == "auto" and config.backend in (None, "cpu") and _has_integers(path):
        return step_bytes(path, "stored")
    return float_bytes(read_config(path), config.dtype)


def float_bytes(model: ModelConfig, dtype_name: str) -> int:
    """The same where every matrix is in one dtype, from the parameters alone."""
    import torch

    from polyserve.model.decoder import Decoder

    dtype: torch.dtype = getattr(torch, dtype_name)
    decoder = Decoder(model, dtype=dtype)  # parameters have no memory before they are loaded
    table = 0 if model.tied_head else model.vocab_size * model.hidden_size * dtype.itemsize
    return sum(parameter.nbytes for parameter in decoder.parameters()) - table


def token_flops(path: Path) -> int:
    """Operations of one prompt token: two for each element of a layer's matrix. The head answers the last one alone."""
    matrices = (weight for weight in _weights(path) if len(weight.shape) == 2)
    return sum(2 * prod(weight.shape) for weight in matrices if not weight.is_one_of((*HEADS, *WORDS, *POSITIONS)))


def _bytes_at(weight: Weight, precision: str) -> int:
    if precision == "stored":
        return weight.num_bytes
    if precision in BITS and len(weight.shape) == 2:
        return prod(weight.shape) * BITS[precision] // 8
    return prod(weight.shape) * 2


def _has_integers(path: Path) -> bool:
    """Whether a checkpoint stores matrices as integers: GGUF, or safetensors that have scales."""
    if path.is_file():
        return True
    return any(path.glob(SAFETENSORS)) and any(weight.name.endswith(".scales") for weight in _weights(path))


def _read_in_a_step(weights: list[Weight]) -> Iterator[Weight]:
    has_head = any(weight.name in HEADS for weight in weights)
    looked_up = (*POSITIONS, *WORDS) if has_head else POSITIONS
    return (weight for weight in weights if not weight.is_one_of(looked_up))


def _weights(path: Path) -> Iterator[Weight]:
    """Raises ModelLoadError if there is neither a GGUF file nor safetensors."""
    if path.is_file():
        for name, tensor in read_gguf(path).tensors.items():
            yield Weight(name, tensor.shape, tensor.data.nbytes)
        return
    files = sorted(path.glob(SAFETENSORS))
    if not files:
        raise ModelLoadError(f"{path}: has no safetensors to count bytes in")
    for file in files:
        yield from _safetensors_weights(file)


def _safetensors_weights(file: Path) -> Iterator[Weight]:
    """From the index at the head of the file."""
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield Weight(name, tuple(entry["shape"]), end - begin)
