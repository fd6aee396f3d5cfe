"""Which form of a model, at which precision, each engine reads. A pair that cannot be is refused by name.

file        the .gguf file itself, with the blocks it has
bf16 folder safetensors with a config.json, as Hugging Face has them; made from a GGUF file by export.py
16-bit GGUF the same .gguf file with every matrix in bf16 (llama.cpp) or fp16 (OpenVINO's reader has no bf16)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from polyserve.gguf import read_gguf
from polyserve_benchmarks.compare.export import bf16_folder, gguf_of_16_bits
from polyserve_benchmarks.compare.models import made_from
from polyserve_benchmarks.compare.process import EngineFailed

# https://github.com/openvinotoolkit/openvino.genai, src/cpp/src/gguf_utils
OPENVINO_ARCHITECTURES = ("llama", "qwen2", "qwen3")
OPENVINO_BLOCKS = ("F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")


@dataclass(frozen=True, slots=True)
class Form:
    """What an engine is given."""

    path: Path
    options: dict[str, object] = field(default_factory=dict)  # of this engine alone


def form_for(engine: str, precision: str, path: Path) -> Form:
    """Make the form if need be. Raises EngineFailed where an engine has none of this model at this precision."""
    if precision == "stored" and path.is_dir():
        precision = "bf16"
    return _FORMS[engine](precision, path)


def _polyserve(precision: str, path: Path) -> Form:
    match precision:
        case "stored":
            return Form(path, {"quantization": "auto"})
        case "bf16":
            return Form(path, {"quantization": "none"})
    return Form(path, {"quantization": precision})


def _llama_cpp(precision: str, path: Path) -> Form:
    if path.is_dir():
        raise EngineFailed("it reads GGUF files, and this model is a folder")
    match precision:
        case "stored":
            return Form(path)
        case "bf16":
            return Form(_made(path, "bf16.gguf", lambda target: gguf_of_16_bits(path, target, "BF16")))
    raise EngineFailed(f"its quantised types have other blocks than {precision}: give it a GGUF file that has them")


def _vllm(precision: str, path: Path) -> Form:
    if precision != "bf16":
        raise EngineFailed(f"its CPU build does not multiply {_words(precision, path)}; --precision bf16 includes it")
    return Form(_folder(path))


def _openvino(precision: str, path: Path) -> Form:
    if path.is_dir():
        raise EngineFailed("it reads a GGUF file or a converted model, and this model is a folder")
    file = read_gguf(path)
    architecture = file.metadata.get("general.architecture")
    if architecture not in OPENVINO_ARCHITECTURES:
        raise EngineFailed(f"its GGUF reader knows {', '.join(OPENVINO_ARCHITECTURES)}, and this is {architecture}")
    match precision:
        case "stored":
            foreign = {tensor.type.name for tensor in file.tensors.values()} - set(OPENVINO_BLOCKS)
            if foreign:
                raise EngineFailed(f"its GGUF reader has no {', '.join(sorted(foreign))}")
            return Form(path)
        case "bf16":
            sixteen = _made(path, "fp16.gguf", lambda target: gguf_of_16_bits(path, target, "F16"))
            return Form(sixteen, {"INFERENCE_PRECISION_HINT": "bf16"})
    raise EngineFailed(f"its GGUF reader makes no {precision}")


def _ctranslate2(precision: str, path: Path) -> Form:
    types = {"bf16": "bfloat16", "int8": "int8"}
    if precision not in types:
        raise EngineFailed(f"it does not multiply {_words(precision, path)}; --precision bf16 or int8 includes it")
    return Form(_folder(path), {"compute_type": types[precision]})


_FORMS: dict[str, Callable[[str, Path], Form]] = {
    "polyserve": _polyserve,
    "llama.cpp": _llama_cpp,
    "vllm": _vllm,
    "openvino": _openvino,
    "ctranslate2": _ctranslate2,
}


def _words(precision: str, path: Path) -> str:
    return f"the blocks of {path.name}" if precision == "stored" else precision


def _folder(path: Path) -> Path:
    return path if path.is_dir() else _made(path, "bf16", lambda target: bf16_folder(path, target))


def _made(path: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A file or folder made from the model, once."""
    target = made_from(path) / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"unfinished-{name}")
        make(unfinished)
        unfinished.replace(target)
    return target
