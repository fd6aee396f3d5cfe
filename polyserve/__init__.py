"""PolyServe: train, evaluate and serve multilingual, large-vocabulary language models.

`LLM` and `SamplingParams` are the offline door (`from polyserve import LLM, SamplingParams`). Importing this package
does no work: both names are looked up when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyserve.llm import LLM
    from polyserve.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]
_HOMES = {"LLM": "polyserve.llm", "SamplingParams": "polyserve.sampling_params"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'polyserve' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
