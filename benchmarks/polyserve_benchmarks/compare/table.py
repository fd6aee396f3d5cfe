"""Tables of saved comparisons.

    python -m polyserve_benchmarks.compare.table benchmarks/results/compare-*.json --into README.md
puts one Markdown table a document between the file's lines `<!-- compare -->` and `<!-- end of compare -->`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from polyserve_benchmarks.compare.report import cells

BEGIN, END = "<!-- compare -->", "<!-- end of compare -->"


def main() -> None:
    """Read the command line; print the tables, or put them into a file."""
    parser = argparse.ArgumentParser(prog="polyserve_benchmarks.compare.table", description=__doc__.splitlines()[0])
    parser.add_argument("documents", type=Path, nargs="+", help="JSON documents of `polyserve bench compare --out`")
    parser.add_argument("--into", type=Path, help="a Markdown file with the two marks")
    options = parser.parse_args()
    tables = "\n\n".join(markdown(json.loads(path.read_text(encoding="utf-8"))) for path in options.documents)
    if options.into is None:
        print(tables)
        return
    text = options.into.read_text(encoding="utf-8")
    options.into.write_text(between_marks(text, tables), encoding="utf-8")


def between_marks(text: str, tables: str) -> str:
    """The text with what lies between the marks replaced. Raises ValueError if it has not both."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there must be a line {BEGIN} and after it a line {END}")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def markdown(document: dict[str, Any]) -> str:
    """One document: a caption, a row an engine, and which engines are not there."""
    limits, workload = document["limits"], document["workload"]
    caption = (
        f"**{document['model']}, {document['precision']}**: {workload['input_len']} tokens in,"
        f" {workload['output_len']} out, greedy, {document['threads']} threads, medians of {document['rounds']} rounds."
        f" {document['machine']['cpu']}: memory read at {limits['bytes_per_second'] / 1e9:.1f} GB/s, products at"
        f" {limits['flops_per_second'] / 1e12:.2f} TFLOP/s; a step reads {limits['step_bytes'] / 1e6:.0f} MB."
    )
    head, *rows = cells(document)
    lines = [caption, "", *(_row(row) for row in (head, ["---"] * len(head), *rows))]
    if document["left_out"]:
        lines += ["", "Left out: " + "; ".join(f"{name} ({why})" for name, why in document["left_out"].items()) + "."]
    return "\n".join(lines)


def _row(row: list[str]) -> str:
    return "| " + " | ".join(row) + " |"


if __name__ == "__main__":
    main()
