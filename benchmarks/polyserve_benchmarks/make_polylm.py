"""Write a checkpoint with PolyLM's shape and random weights, to measure what the real one costs where it cannot be had.

    python -m polyserve_benchmarks.make_polylm FOLDER [--layers 24] [--hidden-size 2048] [--heads 16] [--vocab-size N]
The defaults are PolyLM-1.7B: 1,737,084,928 weights, 3.47 GB. The layout is that of the published checkpoints:
GPT2LMHeadModel in bf16, Conv1D matrices [in, out], head tied; a tokenizer of as many pieces lies beside it. Values are
drawn and written a part at a time, so that 400 MB of memory are enough for any size. What it answers is noise.
Source   https://arxiv.org/abs/2307.06018, table 3; https://github.com/huggingface/safetensors#format
"""

import argparse
import itertools
import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

ELEMENTS_AT_A_TIME = 2**24
MAX_LEN = 2048
INIT_STD = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    hidden_size: int
    heads: int
    vocab_size: int


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(prog="polyserve_benchmarks.make_polylm", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--vocab-size", type=int, default=256_000)
    parser.add_argument("--repeat", action="store_true", help="draw few numbers and repeat them: as fast as the disk")
    options = parser.parse_args()
    shape = Shape(options.layers, options.hidden_size, options.heads, options.vocab_size)
    num_bytes = write_checkpoint(options.folder, shape, repeat=options.repeat)
    print(json.dumps({"folder": str(options.folder), "weights_bytes": num_bytes}))


def write_checkpoint(folder: Path, shape: Shape, *, repeat: bool = False) -> int:
    """Write config, weights and tokenizer; return the bytes of the weights. repeat: the same 16 million numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(gpt2_config(shape), indent=2))
    write_tokenizer(folder, shape.vocab_size)
    tensors = dict(tensor_shapes(shape))
    draw = _draws(repeat=repeat)
    with (folder / "model.safetensors").open("wb") as file:
        num_bytes = write_header(file, tensors)
        for name, size in tensors.items():
            write_random(file, name, size, draw)
    return num_bytes


def gpt2_config(shape: Shape) -> dict[str, object]:
    """As the published checkpoints have it."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_fast",
        "n_embd": shape.hidden_size,
        "n_head": shape.heads,
        "n_inner": 4 * shape.hidden_size,
        "n_layer": shape.layers,
        "n_positions": MAX_LEN,
        "layer_norm_epsilon": 1e-5,
        "eos_token_id": 2,
        "vocab_size": shape.vocab_size,
    }


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the file's order."""
    width = shape.hidden_size
    yield "transformer.wte.weight", (shape.vocab_size, width)
    yield "transformer.wpe.weight", (MAX_LEN, width)
    for layer in range(shape.layers):
        block = f"transformer.h.{layer}"
        for matrix, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            yield f"{block}.{matrix}.weight", (inputs, outputs)
            yield f"{block}.{matrix}.bias", (outputs,)
        for norm in ("ln_1", "ln_2"):
            yield f"{block}.{norm}.weight", (width,)
            yield f"{block}.{norm}.bias", (width,)
    yield "transformer.ln_f.weight", (width,)
    yield "transformer.ln_f.bias", (width,)


def weight_bytes(shape: Shape) -> int:
    return sum(2 * torch.Size(size).numel() for _, size in tensor_shapes(shape))


def write_header(file: BinaryIO, tensors: dict[str, tuple[int, ...]]) -> int:
    """Write the index of a safetensors file; return how many bytes of tensors must follow."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors.items():
        begin, end = end, end + 2 * torch.Size(size).numel()
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    return end


def write_random(file: BinaryIO, name: str, size: tuple[int, ...], draw: Callable[[int], Tensor]) -> None:
    """Write one tensor, a part at a time: norm weights near 1, everything else near 0.  draw: gives normal numbers."""
    norm_weight = len(size) == 1 and name.endswith("weight")
    remaining = torch.Size(size).numel()
    while remaining:
        count = min(remaining, ELEMENTS_AT_A_TIME)
        values = draw(count).mul_(INIT_STD).add_(1.0 if norm_weight else 0.0)
        file.write(values.to(torch.bfloat16).view(torch.uint8).numpy().data)
        remaining -= count


def _draws(*, repeat: bool) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(0)
    if not repeat:
        return lambda count: torch.randn(count, generator=generator)
    drawn = torch.randn(ELEMENTS_AT_A_TIME, generator=generator)
    return lambda count: drawn[:count].clone()


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a SentencePiece model of `vocab_size` pieces, laid out as PolyLM's: unk, <s>, </s>, 256 bytes, then text.

    Any text can be encoded: letter by letter, or byte by byte. The rest of the pieces are made-up words.
    """
    format: Any = sentencepiece_model_pb2  # generated, without types
    model = format.ModelProto()
    kinds = format.ModelProto.SentencePiece
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, type=kind, score=0.0)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", type=kinds.BYTE, score=0.0)
    letters = string.ascii_letters + string.digits + string.punctuation
    words = ("▁" + "".join(word) for word in itertools.product(string.ascii_lowercase, repeat=4))
    for number, piece in enumerate(
        itertools.islice(itertools.chain("▁", letters, words), vocab_size - len(model.pieces))
    ):
        model.pieces.add(piece=piece, score=-float(number))
    model.trainer_spec.model_type = format.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = vocab_size
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False, "legacy": False}
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | specials))


if __name__ == "__main__":
    main()
