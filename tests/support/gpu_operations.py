"""The operations of `ops.py` that have kernels on a GPU."""

import inspect

from polyserve_kernels import ops

WITHOUT_KERNELS = {
    "num_vocab_tiles", "packs_weights", "packed_weight", "pack", "embedding", "decoder_step", "dequantize",
}  # fmt: skip
OPERATIONS = {
    name
    for name, function in inspect.getmembers(ops, inspect.isfunction)
    if function.__module__ == ops.__name__ and name not in WITHOUT_KERNELS and not name.startswith("_")
}
