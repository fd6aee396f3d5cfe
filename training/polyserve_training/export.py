"""A run, or a checkpoint in any format, as a folder that `transformers` and the server read.

config.json         the model in Hugging Face's words, with hashes of tokenizer and template
model*.safetensors  tensors by the family's names and layouts: the inverse of `polyserve.model.weights.load`. Matrices
                    are in the dtype that is asked for, the numbers that trained; norms stay in fp32, as they are served
and the tokenizer, its template, generation_config.json. The folder appears when it is whole.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from polyserve.errors import TrainingError
from polyserve.model.decoder import Decoder
from polyserve.model.fields import Fields
from polyserve.model.hf_families import FAMILIES
from polyserve.model.weights.load import load_model
from polyserve.model.weights.names import TABLES, Place
from polyserve.model.weights.resolve import resolve
from polyserve.tokenizer.fingerprint import STAMP, TEMPLATE_FILE, TOKENIZER_FILES, stamp_of
from polyserve_training.checkpoint import Checkpoints, read_meta
from polyserve_training.checkpoint_files import Files

SHARD_BYTES = 4 * 2**30
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Trained:
    model: Decoder
    hf_config: dict[str, Any]
    folder: Path  # with the tokenizer


def convert(source: str, out: Path, *, step: int | None, dtype: str | None) -> Path:
    """Write a run's checkpoint, or a checkpoint's folder, into a new folder, and return it. Raises TrainingError."""
    if out.exists():
        raise TrainingError(f"{out}: exists already")
    run = Path(source)
    if (run / "checkpoints").is_dir():
        trained = load_run(run, step=step, dtype=dtype)
    elif step is not None:
        raise TrainingError(f"{source}: has no steps to choose from: it is no run of `polyserve train`")
    else:
        trained = _load_folder(source, dtype or "bfloat16")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(trained, partial)
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{out}: cannot be written: {error}") from error
    return out


def load_run(run: Path, *, step: int | None = None, dtype: str | None = None) -> Trained:
    """A run's model after a step, default its last checkpoint; in `dtype`, default the one that it computes in."""
    folder = Checkpoints(run, keep=1, asynchronous=False).at(step)
    meta = read_meta(folder)
    dtype = dtype or str(meta["recipe"]["compute"]["dtype"])
    hf_config: dict[str, Any] = meta["model"]
    model = Decoder(FAMILIES[hf_config["model_type"]](Fields(hf_config, "model"), Fields({}, "")), dtype=_DTYPES[dtype])
    files = Files(folder)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        values = files.whole(f"weights/{name}").to(parameter.dtype)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
    return Trained(model.eval(), hf_config, run / "model")


def _load_folder(source: str, dtype: str) -> Trained:
    folder = resolve(source)
    if not (folder / "config.json").is_file():
        raise TrainingError(f"{source}: must be a run, or a folder with a config.json")
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Trained(load_model(folder, dtype=_DTYPES[dtype]), hf_config, folder)


def _write(trained: Trained, folder: Path) -> None:
    for name in (*TOKENIZER_FILES, TEMPLATE_FILE):
        if (trained.folder / name).is_file():
            shutil.copyfile(trained.folder / name, folder / name)
    _write_tensors(trained.model, folder)
    config = trained.model.config
    dtype = str(trained.model.dtype).removeprefix("torch.")
    hf_config = {
        key: value for key, value in trained.hf_config.items() if key not in ("torch_dtype", "auto_map", STAMP)
    }
    hf_config |= {"dtype": dtype, STAMP: stamp_of(folder)}
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")
    generation = {"bos_token_id": config.bos_id, "eos_token_id": list(config.eos_ids)}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _write_tensors(model: Decoder, folder: Path) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in file_tensors(model):
        if sum(kept.nbytes for kept in shards[-1].values()) + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def file_tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """A decoder's tensors by the names and in the layouts of its family's checkpoints."""
    table = TABLES[model.config.family]
    parameters = dict(model.named_parameters())
    for pattern, place in table.places.items():
        for layer in range(model.config.num_layers if "#" in pattern else 1):
            here = place.in_layer(layer)
            if here.parameter not in parameters:
                continue
            prefix = "" if pattern == table.head else table.prefixes[0]
            yield (
                prefix + pattern.replace("#", str(layer)),
                _as_in_file(parameters[here.parameter].detach(), here, model),
            )


def _as_in_file(parameter: Tensor, place: Place, model: Decoder) -> Tensor:
    config = model.config
    q_size, kv_size = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    spans = {
        "": (0, len(parameter)),
        "q": (0, q_size),
        "k": (q_size, q_size + kv_size),
        "v": (q_size + kv_size, q_size + 2 * kv_size),
        "gate": (0, config.mlp_size),
        "up": (config.mlp_size, 2 * config.mlp_size),
    }
    rows = parameter[slice(*spans[place.part])]
    if place.layout == "by head":  # the file's rows go [head, q k v, element]
        rows = rows.view(3, config.num_heads, config.head_size, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)
    if place.layout == "conv1d":
        rows = rows.t()
    return (rows - 1 if place.plus_one else rows).clone(memory_format=torch.contiguous_format)
