"""The processes that train one model together: each has a part of a step's rows, of weights, gradients and moments,
and, where layers themselves are divided, of those.

Start        torchrun --nproc-per-node N --no-python polyserve train RECIPE   (several machines: docs/training.md)
Layout       rank = data rank * tensor + tensor rank: neighbours divide layers (tensor_parallel.py), which talk most
Rows         the processes of data rank r of D take rows r, r + D, ... of a step: its samples are the same for every D
Weights      fp32 masters in parts (FSDP2): a layer is gathered, in the dtype it computes in, while it computes. Norms
             are few, and whole everywhere; with parallel.shard false, so is everything
Gradients    are summed in fp32, after being divided by what all learn from; then each process takes its part's step
Written      by all: checkpoints; by the first: the rest. Control numbers go over gloo, so that no GPU is waited for
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from polyserve.errors import TrainingError
from polyserve.log import get_logger
from polyserve.model.decoder import Decoder
from polyserve.model.norms import Norm
from polyserve_training.config import ParallelRecipe
from polyserve_training.placement import Placement
from polyserve_training.tensor_parallel import placement


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the others; alone unless it is said."""

    rank: int = 0
    size: int = 1
    tensor: int = 1  # how many divide each layer
    shard: bool = False  # whether the others divide weights, gradients and moments
    mesh: DeviceMesh | None = None  # [data, tensor]
    saving: ProcessGroup | None = None  # all of them, for the thread that writes checkpoints

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def data(self) -> int:
        """How many parts a step's rows are in."""
        return self.size // self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def tensor_group(self) -> ProcessGroup | None:
        """Those that share the vocabulary."""
        return None if self.mesh is None or self.tensor == 1 else self.mesh.get_group("tensor")

    def total(self, number: float) -> float:
        """The sum of everyone's number."""
        if self.size == 1:
            return number
        on_cpu = torch.tensor(number, dtype=torch.float64)
        distributed.all_reduce(on_cpu)
        return float(on_cpu)

    def sum_over_rows(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the sum over those with other rows."""
        if self.mesh is not None and self.data > 1:
            _all_reduce(tensors, self.mesh.get_group("data"))

    def sum_over_all(self, number: Tensor) -> Tensor:
        if self.size > 1:
            distributed.all_reduce(number)
        return number

    def leave(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()


ALONE = Processes()


def join(recipe: ParallelRecipe, device_type: str) -> Processes:
    """Meet the processes that torchrun started with this one; alone where it did not.

    Raises TrainingError if so many cannot be laid out as the recipe says."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size % recipe.tensor:
        raise TrainingError(
            f"parallel.tensor: {size} processes cannot be groups of {recipe.tensor}; torchrun starts them"
        )
    data = size // recipe.tensor
    if recipe.data not in (None, data):
        raise TrainingError(
            f"parallel.data: {size} processes are {data} times {recipe.tensor}, not {recipe.data} times; "
            "torchrun starts them"
        )
    if size == 1:
        return Processes()
    # pytorch/pytorch#135712: such processes look for each other where the former ones were
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shares_store and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise TrainingError(
            "torchrun: processes that are started again meet only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, and with "
            "--standalone or --rdzv-backend=c10d; or give --max-restarts=0"
        )
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not distributed.is_initialized():  # by Ray Train
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo")
    mesh = init_device_mesh(device_type, (data, recipe.tensor), mesh_dim_names=("data", "tensor"))
    saving = distributed.new_group(backend="gloo")
    shard = recipe.shard and data > 1
    processes = Processes(distributed.get_rank(), size, recipe.tensor, shard, mesh, saving)
    if not processes.first:
        get_logger("polyserve").setLevel("WARNING")
    return processes


def shard(model: Decoder, processes: Processes) -> None:
    """Divide a model without memory: its parameters become fp32 parts, and its layers gather them when they compute."""
    assert processes.mesh is not None
    dtype = model.dtype
    model.float()
    norms = {parameter for norm in model.modules() if isinstance(norm, Norm) for parameter in norm.parameters()}
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in (*model.layers, model):
        sharded = fully_shard(module, mesh=processes.mesh["data"], mp_policy=policy, ignored_params=norms)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


def keep_gradients_whole(model: nn.Module) -> None:
    """Have gathered parameters take gradients in fp32, whatever they compute in. Parameters must have memory."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            for parameter in module.parameters():
                parameter.grad_dtype = torch.float32
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a divided tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placement_of(name: str, parameter: nn.Parameter, model: Decoder, processes: Processes) -> Placement:
    """Which elements of the whole parameter a process holds."""
    whole = placement(name, parameter.shape, model.config, rank=processes.tensor_rank, size=processes.tensor)
    if not isinstance(parameter, DTensor):
        return whole.held_by(processes.data)
    rows = -(-parameter.shape[0] // processes.data)  # as torch.chunk divides them
    return whole.within(rows * processes.data_rank, rows * (processes.data_rank + 1))


def _all_reduce(tensors: Sequence[Tensor], group: ProcessGroup) -> None:
    """In one message."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat, group=group)
    for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))
