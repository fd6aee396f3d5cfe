"""A checkpoint becomes a Decoder: all names are matched first, then one tensor at a time is streamed into its place.

No weight is read before every name and shape is known to fit: tensors that are missing, left over or of another shape
are errors that name them. Loading needs the model's own size and little more.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from polyserve.errors import ModelLoadError
from polyserve.gguf import read_gguf
from polyserve.model.config import ModelConfig
from polyserve.model.decoder import Decoder
from polyserve.model.families import config_from_folder, config_from_gguf
from polyserve.model.weights import safetensors, torch_bin
from polyserve.model.weights.fill import Assignment, Packing, fill, put_packed_weights
from polyserve.model.weights.gguf import GGUFSource
from polyserve.model.weights.names import GGUF_TABLES, TABLES, NameTable, Place
from polyserve.model.weights.source import FilesSource, MappedFile, TensorSource, checkpoint_files

MAX_NAMED = 5  # tensors that an error names before it only counts them
FORMATS: dict[str, Callable[[Path], MappedFile]] = {
    safetensors.FILE_NAME: safetensors.SafetensorsFile,
    torch_bin.FILE_NAME: torch_bin.TorchBinFile,
}


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    max_model_len: int | None = None,
    device: torch.device | None = None,
    packing: Packing | None = None,
) -> Decoder:
    """Load what `resolve` found, in `dtype` (norm weights stay in fp32), onto `device` (default: the CPU).

    max_model_len: longest sequence that it will be asked for; default: the model's own limit. packing: for serving
    alone, where `ops.packs_weights`: matrices become packed weights, which have no gradients. Raises ModelLoadError.
    """
    config, table, source = _open(path)
    try:
        model = Decoder(config, dtype=dtype, max_model_len=max_model_len)
    except ValueError as error:
        raise ModelLoadError(f"{path}: {error}") from error
    names = _names_without_prefix(path, table, source)
    plan = _plan(path, model, table, names, source.shapes)
    if config.tied_head and table.head in names:
        _check_copy_of_words(path, names[table.head], names[table.words], source, dtype)
    if packing is not None:
        put_packed_weights(model, plan, source, packing)
    for assignment in plan:
        fill(model, assignment, source, device, packing)
    return model.to(device).eval()  # tables of positions: every parameter is there already


def _open(path: Path) -> tuple[ModelConfig, NameTable, TensorSource]:
    """The config, the name table and the tensors of a folder or a .gguf file."""
    if not path.is_dir():
        file = read_gguf(path)
        config = config_from_gguf(file)
        return config, GGUF_TABLES[config.family], GGUFSource(file)
    config = config_from_folder(path)
    for name, open_file in FORMATS.items():
        files = checkpoint_files(path, name)
        if files:
            return config, TABLES[config.family], FilesSource(files, open_file)
    raise ModelLoadError(f"{path}: has no {' or '.join(FORMATS)}, nor an index of shards")


def _names_without_prefix(path: Path, table: NameTable, source: TensorSource) -> dict[str, str]:
    """Names in the file by what the table calls them; ignored buffers are left out."""
    names: dict[str, str] = {}
    for full_name in source.shapes:
        name = full_name
        for prefix in table.prefixes:
            name = name.removeprefix(prefix)
        if table.ignored.fullmatch(name):
            continue
        if name in names:
            raise ModelLoadError(f"{path}: tensors {names[name]} and {full_name} are the same one")
        names[name] = full_name
    return names


def _plan(
    path: Path, model: Decoder, table: NameTable, names: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> list[Assignment]:
    """Where each tensor goes, in the file's order. Raises ModelLoadError unless all of the model is there."""
    parameters = dict(model.named_parameters())
    places = _places(table, parameters, model.config.num_layers)
    copies = {table.head} if model.config.tied_head else set()
    missing = [name for name in places if name not in names]
    leftover = [full_name for name, full_name in names.items() if name not in places and name not in copies]
    if missing or leftover:
        raise ModelLoadError(f"{path}: " + "; ".join(_name_some(missing, "missing") + _name_some(leftover, "unknown")))
    linear_layout = _has_linear_layout(names, shapes, places)
    plan: list[Assignment] = []
    for name, full_name in names.items():
        if name not in places:
            continue
        place = places[name]
        transposed = place.layout == "conv1d" and not linear_layout
        rows, shape = _rows(place, model.config, parameters[place.parameter])
        wanted = tuple(reversed(shape)) if transposed else shape
        if shapes[full_name] != wanted:
            raise ModelLoadError(
                f"{path}: tensor {full_name} must have shape {list(wanted)}, got {list(shapes[full_name])}"
            )
        plan.append(Assignment(full_name, place.parameter, rows, transposed, place.plus_one))
    return plan


def _places(table: NameTable, parameters: dict[str, nn.Parameter], num_layers: int) -> dict[str, Place]:
    """The table with layers' numbers filled in, for the parameters that this model has."""
    places: dict[str, Place] = {}
    for pattern, place in table.places.items():
        for layer in range(num_layers if "#" in pattern else 1):
            numbered = place.in_layer(layer)
            if numbered.parameter in parameters:
                places[pattern.replace("#", str(layer))] = numbered
    return places


def _name_some(names: list[str], word: str) -> list[str]:
    if not names:
        return []
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return [f"{len(names)} {word} tensor{'s' if len(names) > 1 else ''}: {', '.join(names[:MAX_NAMED])}{rest}"]


def _has_linear_layout(names: dict[str, str], shapes: dict[str, tuple[int, ...]], places: dict[str, Place]) -> bool:
    """Whether matrices that GPT-2 keeps as [in, out] are [out, in] in this file: PolyLM has been published both ways.

    Square ones (attn.c_proj, and mlp.* if n_inner = n_embd) do not tell; c_attn, [h, 3h] or [3h, h], always does.
    """
    for name, place in places.items():
        shape = shapes[names[name]]
        if place.layout == "conv1d" and place.parameter.endswith("qkv.weight") and len(shape) == 2:
            return shape[0] > shape[1]
    return False


def _rows(place: Place, config: ModelConfig, parameter: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The parameter's row for each row of the tensor in the file, and the shape of those rows together."""
    q_size, kv_size = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    spans = {
        "": (0, parameter.shape[0]),
        "q": (0, q_size),
        "k": (q_size, kv_size),
        "v": (q_size + kv_size, kv_size),
        "gate": (0, config.mlp_size),
        "up": (config.mlp_size, config.mlp_size),
    }
    start, count = spans[place.part]
    rows = torch.arange(start, start + count)
    if place.layout == "by head":  # file rows go [head, q k v, element]
        rows = rows.view(3, config.num_heads, config.head_size).transpose(0, 1).flatten()
    elif place.layout == "neighbours":  # file rows go [head, pair, first or second of the pair]
        rows = rows.view(-1, 2, config.head_size // 2).transpose(1, 2).flatten()
    return rows, (count, *parameter.shape[1:])


def _check_copy_of_words(path: Path, name: str, words: str, source: TensorSource, dtype: torch.dtype) -> None:
    """A tied model's file may hold its head once more: refuse one that differs: tying would change the answers."""
    if source.shapes[name] != source.shapes[words]:
        raise ModelLoadError(
            f"{path}: tensor {name} must have shape {list(source.shapes[words])}, got {list(source.shapes[name])}"
        )
    for (_, ours), (_, theirs) in zip(source.blocks(words), source.blocks(name), strict=True):
        if not torch.equal(ours.to(dtype), theirs.to(dtype)):
            raise ModelLoadError(f"{path}: tensor {name} differs from the word embedding, though the config ties them")
