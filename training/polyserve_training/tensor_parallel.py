"""Tensor parallelism: each process of a group is a decoder with a share of the heads, of the MLP and of the vocabulary.

    x ──shared──> qkv, up      rows of the weight: this process's heads, its channels of the MLP
                  out, down    columns of the weight, the same channels  ──summed──> + bias
    words         rows of the embedding: another process's word is 0 here  ──summed──>
    head          rows: `linear_cross_entropy` folds what processes know of the vocabulary (its argument `group`)
shared   the same x everywhere; going back, each process knows a part of its gradient, and the parts are summed
summed   the sum of what processes have; going back, every one gets the whole gradient
Everything else (norms, biases of sums, positions) is whole in every process, and stays the same there. Sums are fp32,
rounded once, as they are within one process.
Source   Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; applied by torch's plans, summed by its DTensor
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from polyserve.errors import TrainingError
from polyserve.model.attention import Attention
from polyserve.model.config import ModelConfig
from polyserve.model.decoder import Decoder
from polyserve.model.embedding import Embedding
from polyserve.model.linear import Linear
from polyserve.model.positions import alibi_slopes
from polyserve_kernels import ops
from polyserve_training.placement import Placement


def share_of(config: ModelConfig, num_processes: int) -> ModelConfig:
    """One process's decoder. Raises TrainingError where they cannot all have the same."""
    parts = ("num_heads", "num_kv_heads", "mlp_size", "vocab_size")
    for name in parts:
        if getattr(config, name) % num_processes:
            raise TrainingError(
                f"parallel.tensor: {num_processes} processes cannot share the model's {name} of {getattr(config, name)}"
            )
    return replace(config, **{name: getattr(config, name) // num_processes for name in parts})


def placement(name: str, shape: torch.Size, config: ModelConfig, *, rank: int, size: int) -> Placement:
    """Where a process's parameter lies in the whole one.  shape: of the parameter.  config: `share_of` the model's."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    if name == "head":
        module = "head"
    if module in ("out", "down") and len(shape) == 2:
        columns = range(rank * shape[1], (rank + 1) * shape[1])
        return Placement((shape[0], shape[1] * size), (range(shape[0]),), columns)
    q, kv = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    spans = {
        "qkv": (q, kv, kv),
        "up": (config.mlp_size,) * (2 if config.gated else 1),
        "head": (config.vocab_size,),
        "embedding": (config.vocab_size,) if name == "embedding.weight" else (),
    }.get(module, ())
    if not spans:
        return Placement(tuple(shape), (range(shape[0]),), copies=size)
    rows, first = [], 0
    for span in spans:
        rows.append(range(first + rank * span, first + (rank + 1) * span))
        first += size * span
    return Placement((first, *shape[1:]), tuple(rows))


def connect(model: Decoder, mesh: DeviceMesh) -> None:
    """Let shares of a decoder sum what only all of them together know."""
    plan: dict[str, ParallelStyle] = {
        "embedding": _Words(),
        "layers.*.attention": _Heads(),
        "layers.*.attention.out": _Sum(),
        "layers.*.mlp": _Shared(),
        "layers.*.mlp.down": _Sum(),
    }
    parallelize_module(model, mesh, plan)


class _Shared(ParallelStyle):
    """A half block whose input is shared."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        def share(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return _shared(args[0], mesh), *args[1:]

        module.register_forward_pre_hook(share)
        return module


class _Heads(_Shared):
    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, Attention)

        def summed(grad: Tensor) -> Tensor:
            grad = grad.clone()
            all_reduce(grad, group=mesh.get_group())
            return grad

        for norm in (module.q_norm, module.k_norm):  # of each head, with weights that all heads have
            if norm is not None:
                for parameter in norm.parameters():
                    parameter.register_hook(summed)  # type: ignore[no-untyped-call]
        if module.alibi_slopes is not None:
            count, first = len(module.alibi_slopes), mesh.get_local_rank() * len(module.alibi_slopes)
            slopes = alibi_slopes(count * mesh.size(), scale=module.config.alibi_scale)
            module.alibi_slopes = slopes[first : first + count].to(module.alibi_slopes.device)
        return super()._apply(module, mesh)


class _Sum(ParallelStyle):
    """A product whose inputs are divided."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, Linear)

        def forward(x: Tensor) -> Tensor:
            y = _summed(ops.matmul(x, module.weight, out_dtype=torch.float32), mesh)
            return (y if module.bias is None else y + module.bias).to(x.dtype)

        module.forward = forward  # type: ignore[method-assign]
        return module


class _Words(ParallelStyle):
    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, Embedding)
        rows_of, first = module.words, mesh.get_local_rank() * module.weight.shape[0]

        def words(token_ids: Tensor) -> Tensor:
            here = token_ids - first
            elsewhere = (here < 0) | (here >= module.weight.shape[0])
            rows = rows_of(here.masked_fill(elsewhere, 0))
            return _summed(rows.masked_fill(elsewhere[:, None], 0.0), mesh)

        module.words = words  # type: ignore[method-assign]
        return module


def _shared(x: Tensor, mesh: DeviceMesh) -> Tensor:
    whole = DTensor.from_local(x.float(), mesh, [Replicate()], run_check=False)
    return whole.to_local(grad_placements=[Partial()]).to(x.dtype)


def _summed(x: Tensor, mesh: DeviceMesh) -> Tensor:
    parts = DTensor.from_local(x, mesh, [Partial()], run_check=False)
    return parts.redistribute(placements=[Replicate()]).to_local()
