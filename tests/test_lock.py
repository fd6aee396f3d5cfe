"""requirements.lock: every package that pyproject.toml asks for, at a version that it allows, by hash.

`make lock-check` also resolves everything again.
"""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENTRY = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[\w.+!]+)(?: ; [^\\]+)?(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)
PINNED_ELSEWHERE = {"torch"}  # in the Makefile, since its build depends on the machine


@cache
def locked() -> dict[str, str]:
    """Version by name."""
    return {match["name"]: match["version"] for match in ENTRY.finditer((ROOT / "requirements.lock").read_text())}


def wanted() -> Iterator[Requirement]:
    """What pyproject.toml asks for itself, but for what only some machines can have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lines in (
        project["dependencies"],
        *(extras[name] for name in ("cuda", "train", "tensorboard", "wandb", "otel", "dev")),
    ):
        yield from (Requirement(line) for line in lines if not line.startswith("polyserve-lm"))


def test_every_line_is_a_package_with_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert ENTRY.sub("", text) == ""
    assert len(locked()) > 60


def test_every_requirement_is_locked_at_a_version_it_allows() -> None:
    wrong = []
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        if name in PINNED_ELSEWHERE:
            continue
        version = locked().get(name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} is locked as {version}: run `make lock`")
    assert wrong == []


def test_what_the_locked_packages_need_themselves_is_locked_too() -> None:
    missing = []
    for name in locked():
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # of another system
            continue
        for requirement in map(Requirement, lines):
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and canonicalize_name(requirement.name) not in locked().keys() | PINNED_ELSEWHERE:
                missing.append(f"{name} needs {requirement.name}")
    assert missing == []
