"""Documents, and sentences that mean the same, out of the packages' pages.

page       a line of text for each of its blocks: headings, paragraphs, cells. Help pages have the same paths and their
           blocks the same ids in every language, which makes them parallel
once       a block of help that stands on several pages word for word is learned from once
held out   help pages whose path hashes so, the same in all languages, so that no page is learned from in one language
           and judged in another, without the blocks that are learned from elsewhere; of declarations, some articles
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from html.parser import HTMLParser
from pathlib import Path

BLOCKS = ("h1", "h2", "h3", "h4", "h5", "h6", "p", "li", "pre")
HELD_OUT_PART = 8  # one page of so many
MIN_CHARS = 200  # of a help page: shorter ones are links to others
BLOCKS_OF_ARTICLE, ARTICLES_A_HELD_OUT = 6, 5


@dataclass(frozen=True, slots=True)
class Split:
    """Pages of one language: by path, their blocks by id."""

    train: dict[str, dict[str, str]] = field(default_factory=dict)
    held_out: dict[str, dict[str, str]] = field(default_factory=dict)


def help_pages(folder: Path, *, max_bytes: int | None) -> Split:
    """Pages of a language, in an order that scatters subjects, until there is so much to learn from."""
    split, size, learned = Split(), 0, set[str]()
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*.html")]
    for path in sorted(paths, key=_number):
        blocks = blocks_of(folder / path)
        if _number(path) % HELD_OUT_PART == 0:
            split.held_out[path] = blocks
            continue
        blocks = _without(learned, blocks)
        if not blocks:
            continue
        size += sum(len(text.encode()) for text in blocks.values())
        if max_bytes is not None and size > max_bytes:
            break
        split.train[path] = blocks
        learned.update(blocks.values())
    held_out = {path: new for path, blocks in split.held_out.items() if (new := _without(learned, blocks))}
    return Split(split.train, held_out)


def _without(learned: set[str], blocks: dict[str, str]) -> dict[str, str]:
    """What is new on a page; nothing if that is too little."""
    new = {name: text for name, text in blocks.items() if text not in learned}
    return new if sum(map(len, new.values())) >= MIN_CHARS else {}


def declaration(page: Path) -> Split:
    """A declaration in pieces, one in five of them held out."""
    split = Split()
    blocks = list(blocks_of(page).items())
    for number, start in enumerate(range(0, len(blocks), BLOCKS_OF_ARTICLE)):
        is_held_out = number % ARTICLES_A_HELD_OUT == ARTICLES_A_HELD_OUT - 1
        part = split.held_out if is_held_out else split.train
        part[f"{page.name}#{number}"] = dict(blocks[start : start + BLOCKS_OF_ARTICLE])
    return split


def blocks_of(page: Path) -> dict[str, str]:
    """The text of each block by its id, in order; a block without one is named by its number."""
    html = page.read_text(encoding="utf-8")
    _, display, content = html.partition('<div id="DisplayArea"')  # what stands around it is the same on each help page
    parser = _Blocks()
    parser.feed((display + content if display else html).partition("<footer>")[0])
    parser.close()
    return parser.found


def aligned(source: dict[str, dict[str, str]], target: dict[str, dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Blocks of the same name on the same page in two languages; what was not translated is left out."""
    for path in (path for path in source if path in target):
        for name, text in source[path].items():
            if target[path].get(name, text) != text:
                yield text, target[path][name]


def _number(path: str) -> int:
    return int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little")


class _Blocks(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._open: tuple[str, str] | None = None  # tag and id
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS:
            self._close()
            self._open = tag, dict(attrs).get("id") or str(len(self.found))

    def handle_endtag(self, tag: str) -> None:
        if self._open is not None and tag == self._open[0]:
            self._close()

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._text.append(data)

    def _close(self) -> None:
        text = " ".join("".join(self._text).split())
        if self._open is not None and text:
            self.found.setdefault(self._open[1], text)
        self._open, self._text = None, []
