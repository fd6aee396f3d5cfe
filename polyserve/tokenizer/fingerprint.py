"""One hash of a tokenizer's files: data sets and checkpoints carry it, so that ids mean what they meant.

A checkpoint that `polyserve convert` wrote has it in config.json, under "polyserve", with that of chat_template.jinja;
loading the tokenizer looks whether they are still the same. Other checkpoints have none, and nothing is looked at.
"""

from hashlib import sha256
from pathlib import Path

from polyserve.errors import ModelLoadError
from polyserve.tokenizer.settings import read_object

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TEMPLATE_FILE = "chat_template.jinja"
STAMP = "polyserve"


def tokenizer_sha256(folder: Path) -> str:
    """Of all files that decide which ids a text has."""
    return _sha256(folder, TOKENIZER_FILES)


def stamp_of(folder: Path) -> dict[str, str]:
    """What a checkpoint's config.json says of the files in its folder."""
    return {"tokenizer_sha256": tokenizer_sha256(folder), "chat_template_sha256": _sha256(folder, (TEMPLATE_FILE,))}


def check_stamp(folder: Path) -> None:
    """Raise ModelLoadError if config.json has a stamp, and the tokenizer or the chat template is another one."""
    stamp = read_object(folder / "config.json").get(STAMP)
    if not isinstance(stamp, dict):
        return
    found = stamp_of(folder)
    if stamp.get("tokenizer_sha256") != found["tokenizer_sha256"]:
        raise ModelLoadError(f"{folder}: its tokenizer is not the one that the model was trained with")
    if stamp.get("chat_template_sha256") != found["chat_template_sha256"]:
        raise ModelLoadError(
            f"{folder / TEMPLATE_FILE}: is not the one that the model was trained with; to use it all the same, take "
            f'"{STAMP}" out of config.json'
        )


def _sha256(folder: Path, names: tuple[str, ...]) -> str:
    whole = sha256()
    for name in names:
        path = folder / name
        if path.is_file():
            whole.update(name.encode() + b"\0" + sha256(path.read_bytes()).digest())
    return whole.hexdigest()
