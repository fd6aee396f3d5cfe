"""Writes `docs/api.md` from the code, or checks that it is current.

    python -m polyserve.api.reference           write it
    python -m polyserve.api.reference --check   write nothing; exit with 1 if it is outdated

Needs grpcio-tools, as `polyserve_proto.generate` does.
"""

import argparse
import sys
from pathlib import Path

from polyserve.api.reference.http import http_chapter
from polyserve.api.reference.limits import limits_chapter
from polyserve.api.reference.rpc import rpc_chapter

PATH = Path(__file__).parents[3] / "docs" / "api.md"
BEGINNING = """\
# The API, field by field

Written by `make docs` from the code that reads the fields; a test holds it to that. A field that is not listed is
refused by name. What becomes of a field:

| | |
|---|---|
| honoured | it has the effect that is described |
| echoed | OpenAI defines it to have no effect; the response repeats it |
| accepted | OpenAI defines it to have no effect, and the response has no place for it |
| refused | a request that needs it is a 400 that names it; only the values that ask for nothing are taken |

"""


def document() -> str:
    """The whole page."""
    return BEGINNING + "\n".join((http_chapter(), rpc_chapter(), limits_chapter()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m polyserve.api.reference", description="Write docs/api.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it is outdated")
    if not parser.parse_args().check:
        PATH.parent.mkdir(exist_ok=True)
        PATH.write_text(document())
        return 0
    if PATH.exists() and PATH.read_text() == document():
        return 0
    sys.stderr.write(f"{PATH} is outdated: run make docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
