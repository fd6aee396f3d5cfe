"""What one measurement of an operation on a GPU is: a call of ours, the same by peers, and the least that it must do.

Where `leaves` are given, gradients for them are measured too, together with the forward pass, since libraries differ in
which of the two does the work.
Bytes    what goes in, read once, and what comes out, written once
Flops    a multiplication and an addition are two
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyserve_kernels import dispatch
from polyserve_kernels.types import BlockCache

Call = Callable[[], Tensor]

FLASH = "triton+flash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of everything that is measured: PolyLM-13B, and Llama-3.1-8B's groups of queries. Tests take small ones."""

    rows: int = 2048  # of a prefill, and of a training batch
    sequences: int = 32  # that decode
    context: int = 2048  # tokens that each of them has
    heads: int = 40
    kv_heads: int = 8  # where queries are grouped
    head_size: int = 128
    mlp: int = 20_480
    vocab: int = 256_000
    block: int = 16
    flash_block: int = 256

    @property
    def channels(self) -> int:
        return self.heads * self.head_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    configuration: str
    ours: Call
    peers: dict[str, Call]  # what they return is what `ours` returns, but for rounding
    num_bytes: int
    flops: int
    leaves: tuple[Tensor, ...] = ()
    both_bytes: int = 0  # of forward and backward together
    both_flops: int = 0
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Maker:
    """Random tensors on a device, bfloat16 unless said otherwise."""

    device: str

    def __call__(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    def float32(self, *shape: int) -> Tensor:
        return self(*shape, dtype=torch.float32)

    def ids(self, *shape: int, below: int) -> Tensor:
        return torch.randint(below, shape, device=self.device)

    def int32(self, *numbers: int) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

    def cache(self, num_blocks: int, block: int, kv_heads: int, head_size: int) -> BlockCache:
        return BlockCache(*(self(num_blocks, block, kv_heads, head_size) for _ in range(2)))


def bytes_of(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def both(call: Call, leaves: tuple[Tensor, ...]) -> Callable[[], object]:
    """The forward and the backward pass of `call`."""
    with torch.no_grad():
        grad = torch.randn_like(call())

    def forward_and_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(), leaves, grad)

    return forward_and_backward


def with_flash(call: Call, *, device: str) -> dict[str, Call]:
    """The same operation by flash-attn, where it is installed."""
    if device != "cuda" or importlib.util.find_spec("flash_attn") is None:
        return {}

    def by_flash() -> Tensor:
        with dispatch.use_backend(FLASH):
            return call()

    return {"flash-attn": by_flash}


def with_liger(name: str, call: Callable[[Callable[..., Tensor]], Tensor], *, device: str) -> dict[str, Call]:
    """`call` of a function of Liger's, by name, where Liger is installed."""
    if device != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.transformers import functional

    function: Callable[..., Tensor] = getattr(functional, name)
    return {"Liger": lambda: call(function)}
