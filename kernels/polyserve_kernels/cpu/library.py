"""The compiled library: where it is, what its functions take, and which instruction set answers.

The structs are those of kernels/csrc/kernels.h, field by field. Sizes and strides are in elements.
"""

import ctypes
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.float8_e4m3fn: 4}
VOCAB_TILE = 1024  # ids of a tile of the head


def find() -> Path | None:
    """The library's file, None if it was not built: setup.py leaves it out where there is no C++ compiler.

    POLYSERVE_CPU_LIBRARY names another one, such as that of `make sanitize`.
    """
    named = os.environ.get("POLYSERVE_CPU_LIBRARY")
    return Path(named) if named else next(Path(__file__).parent.glob("_native*.so"), None)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The library, with the processor's best instruction set, or the one that POLYSERVE_CPU_ISA names."""
    path = find()
    if path is None:
        raise OSError(f"no _native*.so in {Path(__file__).parent}")
    loaded = ctypes.CDLL(str(path))
    loaded.ps_packed_bytes.restype = ctypes.c_int64
    loaded.ps_choose.argtypes, loaded.ps_choose.restype = [ctypes.c_char_p], ctypes.c_char_p
    wanted = os.environ.get("POLYSERVE_CPU_ISA", "")
    if loaded.ps_choose(wanted.encode() or None) is None:
        raise ValueError(f"POLYSERVE_CPU_ISA is {wanted!r}, which this processor or this library does not have")
    return loaded


@lru_cache(maxsize=1)
def instruction_set() -> str:
    """`avx2`, `avx512` or `avx512bf16`: what the bits of results depend on."""
    library()
    name: bytes = library().ps_choose(os.environ.get("POLYSERVE_CPU_ISA", "").encode() or None)
    return name.decode()


def runs_here() -> bool:
    """Whether the library was built and this processor has an instruction set that it was built for."""
    path = find()
    if path is None:
        return False
    choose = ctypes.CDLL(str(path)).ps_choose
    choose.restype = ctypes.c_char_p
    return choose(None) is not None


_TYPES: dict[str, Any] = {
    "pointers": ctypes.c_void_p, "sizes": ctypes.c_int64, "floats": ctypes.c_float, "numbers": ctypes.c_int32,
}  # fmt: skip


def _struct(name: str, **kinds: str) -> type[ctypes.Structure]:
    """A C struct.  kinds: for each C type the names of the fields of that type, in order."""
    fields = [(field, _TYPES[kind.removeprefix("more_")]) for kind, fields in kinds.items() for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Weight = _struct(
    "Weight",
    pointers="data",
    sizes="rows channels stride",
    numbers="dtype bits offset group block scale_dtype has_min two_level",
)
Pack = _struct(
    "Pack",
    pointers="weight source rows",
    sizes="num_rows first_channel num_channels row_stride channel_stride",
    more_pointers="scales minimums",
    more_sizes="scale_row scale_group",
    numbers="source_dtype gguf_type threads",
)
Unpack = _struct("Unpack", pointers="weights rows y", sizes="num_weights num_rows", numbers="threads")
Matmul = _struct(
    "Matmul", pointers="x weights bias y", sizes="T N K x_stride num_weights", numbers="dtype out_dtype threads"
)
Norm = _struct(
    "Norm",
    pointers="x residual new_residual weight bias y",
    sizes="T C",
    floats="eps",
    numbers="dtype weight_dtype out_dtype threads",
)
Activation = _struct("Activation", pointers="x bias y", sizes="T F x_stride", numbers="kind dtype threads")
GRADIENT_ROWS = 16  # over which a part of a sum over rows runs
NormGradient = _struct(
    "NormGradient",
    pointers="x weight dy d_residual dx d_weight d_bias",
    sizes="T C",
    floats="eps",
    numbers="weight_dtype dy_dtype threads",
)
ActivationGradient = _struct(
    "ActivationGradient", pointers="x bias dy dx d_bias", sizes="T F x_stride", numbers="kind dtype threads"
)
AttentionGradient = _struct(
    "AttentionGradient",
    pointers="q k v out d_out lse cu_seqlens alibi_slopes dq dk dv",
    sizes="S Hq Hkv D window q_token q_head k_token k_head v_token v_head",
    floats="scale soft_cap",
    numbers="dtype key_gradient_dtype threads",
)
LogitGradient = _struct(
    "LogitGradient",
    pointers="logits lse grad grad_lse targets gradients turned",
    sizes="V T",
    floats="soft_cap",
    numbers="dtype threads",
)
Rotary = _struct(
    "Rotary",
    pointers="q k v cos sin q_out k_out k_cache v_cache k_scales v_scales slots",
    sizes="T Hq Hkv D R num_slots q_token q_head k_token k_head v_token v_head",
    numbers="interleaved dtype cache_dtype threads",
)
Attention = _struct(
    "Attention",
    pointers="q k v k_scales v_scales block_tables seq_lens cu_seqlens_q alibi_slopes out lse",
    sizes="S Hq Hkv D max_blocks block_size window q_token q_head k_token k_head v_token v_head",
    floats="scale soft_cap",
    numbers="dtype cache_dtype threads",
)
Head = _struct(
    "Head",
    pointers=(
        "hidden weight temperature edit_rows edit_ids edit_repetition edit_bias allowed uniforms targets "
        "ids values raw lse raw_lse drawn_ids drawn_raw top_ids top_raw target_raw all_raw all_edited"
    ),
    sizes="S C V K num_top num_edits hidden_stride",
    floats="soft_cap",
    numbers="dtype threads",
)

NormWeights = _struct("NormWeights", pointers="weight bias")
LinearWeights = _struct("LinearWeights", pointers="weights bias", sizes="num_weights N")
_TYPES |= {"norms": NormWeights, "linears": LinearWeights}
DecoderLayer = _struct(
    "DecoderLayer",
    linears="qkv out up down",
    norms="attention_norm q_norm k_norm attention_post_norm mlp_norm mlp_post_norm",
    pointers="cos sin k_cache v_cache k_scales v_scales",
    sizes="window",
)
Decoder = _struct(
    "Decoder",
    linears="words",
    norms="embedding_norm norm",
    pointers=("layers position_table alibi_slopes token_ids positions slots block_tables seq_lens cu_seqlens_q hidden"),
    sizes="num_layers T S C F Hq Hkv D R max_blocks block_size num_slots",
    floats="words_scale position_scale eps scale soft_cap",
    numbers="activation interleaved dtype cache_dtype threads",
)


def call(function: str, struct: type[ctypes.Structure], **fields: Any) -> None:
    """Call a function with a struct of these fields. A tensor becomes its address, a dtype its number; threads are set.

    Fields that are left out, or None, are null or 0. The caller holds the tensors meanwhile.
    """
    call_with(function, struct(), **fields)


def call_with(function: str, struct: ctypes.Structure, **fields: Any) -> None:
    """The same with a struct that has other fields already."""
    struct.threads = torch.get_num_threads()
    for name, value in fields.items():
        if value is not None:
            setattr(struct, name, _value(value))
    getattr(library(), function)(ctypes.byref(struct))


def filled(struct: type[ctypes.Structure], **fields: Any) -> Any:
    """A struct of these fields, as in `call`; a nested one is given as a struct."""
    made = struct()
    for name, value in fields.items():
        if value is not None:
            setattr(made, name, value if isinstance(value, ctypes.Structure) else _value(value))
    return made


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, ctypes.Array | ctypes.Structure):
        return ctypes.addressof(value)
    return DTYPES[value] if isinstance(value, torch.dtype) else value


def rows(x: Tensor) -> Tensor:
    """x, copied if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
