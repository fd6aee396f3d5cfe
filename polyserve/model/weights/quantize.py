"""A checkpoint in safetensors becomes one whose matrices are integers with scales, a tensor at a time.

A matrix that is multiplied, and the words, are quantised as rows [out, in], whatever their layout was: NAME has values,
NAME.scales and NAME.minimums what belongs to them. All other tensors and files are copied. `config.json` says so in
`quantization_config`. No more is held than one shard of SHARD_BYTES and one matrix.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from polyserve.errors import ModelLoadError
from polyserve.model.decoder import Decoder
from polyserve.model.hf_families import QUANT_METHOD
from polyserve.model.weights import safetensors, torch_bin
from polyserve.model.weights.fill import Assignment, matrices_of
from polyserve.model.weights.load import open_checkpoint, plan_of
from polyserve.model.weights.source import MINIMUMS, SCALES, TensorSource
from polyserve.quantization.schemes import Scheme

SHARD_BYTES = 2 * 2**30
_WEIGHTS = tuple(f"{Path(name).stem}*{Path(name).suffix}*" for name in (safetensors.FILE_NAME, torch_bin.FILE_NAME))


def quantize_checkpoint(
    source_folder: Path, target: Path, scheme: Scheme, *, report: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Write `target`, which must not exist; it appears when all of it is there.

    report: is told each tensor's name, and how many of how many are done. Raises ModelLoadError.
    """
    if target.exists():
        raise ModelLoadError(f"{target} exists already")
    if not source_folder.is_dir():
        raise ModelLoadError(f"{source_folder}: only a folder can be quantised; a GGUF file has its own integers")
    config, table, source = open_checkpoint(source_folder)
    plan = plan_of(source_folder, Decoder(config, dtype=torch.float32), table, source)
    unfinished = target.with_name(target.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        _copy_files(source_folder, unfinished, scheme)
        matrices = matrices_of(Decoder(config, dtype=torch.float32))
        shards = _Shards(unfinished)
        for number, tensor in enumerate(plan, start=1):
            for name, part in _parts_of(tensor, source, scheme if tensor.parameter in matrices else None):
                shards.add(name, part)
            report(tensor.name, number, len(plan))
        shards.finish()
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _parts_of(tensor: Assignment, source: TensorSource, scheme: Scheme | None) -> Iterator[tuple[str, Tensor]]:
    whole = torch.cat([block.clone() for _, block in source.blocks(tensor.name)])
    if scheme is None:
        yield tensor.name, whole
        return
    try:
        quantized = scheme.quantize(whole.t() if tensor.transposed else whole)
    except ValueError as error:
        raise ModelLoadError(f"tensor {tensor.name} cannot be quantised: {error}") from error
    yield tensor.name, quantized.values
    yield tensor.name + SCALES, quantized.scales
    if quantized.minimums is not None:
        yield tensor.name + MINIMUMS, quantized.minimums


class _Shards:
    """Tensors into files of about SHARD_BYTES, and the index of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Tensor] = {}
        self._names: list[list[str]] = []
        self._num_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self._held[name] = tensor.contiguous()
        if sum(tensor.nbytes for tensor in self._held.values()) >= SHARD_BYTES:
            self._write()

    def finish(self) -> None:
        if self._held:
            self._write()
        count = len(self._names)
        if count == 1:
            self._path(0).rename(self._folder / safetensors.FILE_NAME)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._names):
            file_name = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._path(number).rename(self._folder / file_name)
            weight_map |= dict.fromkeys(names, file_name)
        index = {"metadata": {"total_size": self._num_bytes}, "weight_map": weight_map}
        (self._folder / f"{safetensors.FILE_NAME}.index.json").write_text(json.dumps(index, indent=2))

    def _write(self) -> None:
        save_file(self._held, self._path(len(self._names)), metadata={"format": "pt"})
        self._num_bytes += sum(tensor.nbytes for tensor in self._held.values())
        self._names.append(list(self._held))
        self._held.clear()

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number}.safetensors"


def _copy_files(source: Path, target: Path, scheme: Scheme) -> None:
    weights = {path for pattern in _WEIGHTS for path in source.glob(pattern)}
    for path in source.iterdir():
        if path.is_file() and path not in weights:
            shutil.copyfile(path, target / path.name)
    config = json.loads((source / "config.json").read_text())
    if "quantization_config" in config:
        raise ModelLoadError(f"{source} is quantised already")
    config["quantization_config"] = {"quant_method": QUANT_METHOD, "scheme": scheme.name, "group_size": scheme.group}
    (target / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
