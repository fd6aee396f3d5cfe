"""One tensor of a checkpoint streams into its rows: of a parameter, or of the packed weight that takes its place.

A parameter gets its memory when its first tensor arrives; blocks of rows are converted and transposed on the way. A
packed weight has a part for each format among its tensors: q, k and v of one product may be stored differently.
Integers with scales are packed as they are stored, unless others are asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyserve.errors import ModelLoadError
from polyserve.model.decoder import Decoder
from polyserve.model.linear import Linear
from polyserve.model.weights.source import TensorSource
from polyserve_kernels import ops
from polyserve_kernels.types import PackedWeight, QuantizedWeight, WeightFormat


@dataclass(frozen=True, slots=True)
class Assignment:
    """One tensor of the file and where it goes."""

    name: str  # in the file
    parameter: str
    rows: Tensor  # the parameter's row for each row of the file, int64; for a transposed tensor, of each column
    transposed: bool
    plus_one: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """In which numbers matrices are packed."""

    keep_integers: bool = True  # as a checkpoint stores them; False: in the model's dtype
    quantize: Callable[[Tensor], QuantizedWeight] | None = None  # rows of floats [R, K], for every matrix


def put_packed_weights(model: Decoder, plan: Sequence[Assignment], source: TensorSource, packing: Packing) -> None:
    """Put packed weights without rows in the place of the matrices that are multiplied."""
    matrices = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)]
    matrices.append("embedding.weight" if model.head is None else "head")
    for name in matrices:
        wanted = model.get_parameter(name)
        parts: list[tuple[int, int, WeightFormat]] = []  # first row, number of rows, format
        for tensor in (assignment for assignment in plan if assignment.parameter == name):
            parts.append((int(tensor.rows.min()), len(tensor.rows), _format(tensor.name, wanted, source, packing)))
        parts.sort(key=lambda part: part[0])
        forms = [(num_rows, form) for _, num_rows, form in parts]
        if len({form for _, form in forms}) == 1:
            forms = [(len(wanted), forms[0][1])]
        owner, leaf = _owner_of(model, name)
        delattr(owner, leaf)
        setattr(owner, leaf, ops.packed_weight(forms, wanted.shape[1]))


def fill(
    model: Decoder, assignment: Assignment, source: TensorSource, device: torch.device | None, packing: Packing | None
) -> None:
    """Stream one tensor into its rows."""
    owner, leaf = _owner_of(model, assignment.parameter)
    place = getattr(owner, leaf)
    if isinstance(place, PackedWeight):
        assert packing is not None
        _fill_packed(place, assignment, source, packing)
        return
    if place.is_meta:
        memory = torch.empty(place.shape, dtype=place.dtype, device=device)
        place = nn.Parameter(memory, requires_grad=False)
        setattr(owner, leaf, place)
    _fill_parameter(place.data, assignment, source)


def _owner_of(model: Decoder, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def _fill_parameter(parameter: Tensor, assignment: Assignment, source: TensorSource) -> None:
    rows = assignment.rows
    start, in_order = int(rows[0]), bool((rows.diff() == 1).all())
    for first, block in source.blocks(assignment.name):
        end = first + len(block)
        if assignment.transposed:
            parameter[:, first:end] = block.to(parameter).t()
        elif in_order:
            parameter[start + first : start + end] = block
        else:
            parameter[rows[first:end]] = block.to(parameter)
    if assignment.plus_one:
        parameter[rows] += 1


def _format(name: str, parameter: Tensor, source: TensorSource, packing: Packing) -> WeightFormat:
    """How a tensor's rows will lie in the packed weight."""
    if packing.quantize is not None:
        try:
            return packing.quantize(torch.zeros(1, parameter.shape[1])).form
        except ValueError as error:
            raise ModelLoadError(f"tensor {name} cannot be quantised: {error}") from error
    stored = source.format(name) if packing.keep_integers else None
    return stored or WeightFormat(dtype=parameter.dtype)


def _fill_packed(weight: PackedWeight, assignment: Assignment, source: TensorSource, packing: Packing) -> None:
    part, rows = 0, assignment.rows
    while len(weight.parts) > 1 and int(rows.min()) >= weight.parts[part].num_rows:
        rows = rows - weight.parts[part].num_rows
        part += 1
    dtype = weight.parts[part].form.dtype
    if dtype is None and packing.quantize is None:
        for first, stored in source.stored(assignment.name):
            ops.pack(weight, stored, rows[first : first + len(stored)], part=part)
    elif assignment.transposed and packing.quantize is not None:  # a row's groups are known only from all its channels
        whole = torch.cat([block for _, block in source.blocks(assignment.name)])
        ops.pack(weight, packing.quantize(whole.t()), rows, part=part)
    else:
        for first, block in source.blocks(assignment.name):
            floats = block.to(dtype or torch.float32) if block.dtype == torch.float64 else block
            if assignment.transposed:
                ops.pack(weight, floats.t(), rows, part=part, first_channel=first)
                continue
            packed = floats if packing.quantize is None else packing.quantize(floats)
            ops.pack(weight, packed, rows[first : first + len(block)], part=part)
