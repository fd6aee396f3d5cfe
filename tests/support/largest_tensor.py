"""How much memory an operation asks for at once: the largest tensor that is made."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that a tensor made inside it had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {id(x) for x in tree_leaves((args, kwargs))}  # what is written in place is not made
        if not function.is_view:
            made = (x for x in tree_leaves(result) if isinstance(x, Tensor) and id(x) not in given)
            self.elements = max([self.elements, *(x.numel() for x in made)])
        return result
