"""Cleaning keeps what is fit to learn from, and says of everything else why it went."""

import json
from pathlib import Path

import pytest

from polyserve.cli.main import main
from polyserve.errors import TrainingError
from polyserve_training.config import PrepareOptions
from polyserve_training.data.documents import Document, read_documents
from polyserve_training.data.prepare import Account, prepare
from polyserve_training.data.rules import LIMITS, RULES, SPACED, fix_lines, limits_of, why_unfit
from support.texts import LANGUAGES

GERMAN = (
    "Im Herbst fuhr die alte Frau jeden Morgen mit dem ersten Zug in die Stadt, um auf dem Markt Äpfel zu verkaufen.\n"
    "Ihr Enkel wartete am Bahnhof, trug die Körbe und erzählte von der Schule, von Lehrern und von seinem Hund.\n"
    "Mittags aßen sie Suppe, und wenn es regnete, setzten sie sich unter das Dach neben der kleinen Kirche.\n"
)
ENGLISH = (
    "Every autumn the old woman took the first train into town to sell apples at the market near the river.\n"
    "Her grandson waited at the station, carried the baskets and talked about school, teachers and his dog.\n"
    "At noon they ate soup, and whenever it rained they sat down under the roof beside the little church.\n"
)
JAPANESE = (
    "秋になると、おばあさんは毎朝はじめの電車で町へ行き、川のそばの市場でりんごを売りました。孫は駅で待っていて、"
    "かごを運びながら、学校のことや先生のこと、飼っている犬のことを話しました。昼には二人でスープを飲み、"
    "雨が降ると小さな教会のとなりの屋根の下にすわりました。"
)


def run(folder: Path, *, options: PrepareOptions | None = None, **files: list[dict[str, str]]) -> dict[str, Account]:
    for name, objects in files.items():
        lines = "".join(json.dumps(fields) + "\n" for fields in objects)
        (folder / f"{name}.jsonl").write_text(lines)
    paths = [folder / f"{name}.jsonl" for name in files]
    return prepare(paths, folder / "out", options or PrepareOptions())


def kept(folder: Path) -> list[Document]:
    return list(read_documents(sorted((folder / "out").glob("*.jsonl.zst"))))


def test_good_documents_of_every_kind_are_kept_as_they_are(tmp_path):
    accounts = run(tmp_path, de=[{"text": GERMAN}], en=[{"text": ENGLISH}], ja=[{"text": JAPANESE}])
    assert [(language, x.read, x.kept) for language, x in accounts.items()] == [
        ("de", 1, 1),
        ("en", 1, 1),
        ("ja", 1, 1),
    ]
    assert [document.text for document in kept(tmp_path)] == [x.strip("\n") for x in (GERMAN, ENGLISH, JAPANESE)]


def test_a_document_in_another_language_than_it_says_goes(tmp_path):
    accounts = run(tmp_path, de=[{"text": GERMAN}, {"text": ENGLISH}])
    assert accounts["de"].dropped == {"another language": 1}
    assert [document.text for document in kept(tmp_path)] == [GERMAN.strip()]


def test_a_document_that_says_no_language_gets_the_identified_one(tmp_path):
    accounts = run(tmp_path, crawled=[{"text": GERMAN}, {"text": JAPANESE}])
    assert {language: account.kept for language, account in accounts.items()} == {"de": 1, "ja": 1}


def test_translations_are_not_identified(tmp_path):
    pair = {"translation": {"en": ENGLISH, "de": GERMAN}}
    assert run(tmp_path, opus=[pair])["en-de"].kept == 1


def test_a_near_duplicate_goes_and_the_first_stays(tmp_path):
    almost = GERMAN.replace("Äpfel", "Birnen")
    accounts = run(tmp_path, de=[{"text": GERMAN}, {"text": almost}, {"text": GERMAN + " "}, {"text": _other(GERMAN)}])
    assert accounts["de"].dropped == {"near duplicate": 2}
    assert [document.text for document in kept(tmp_path)] == [GERMAN.strip(), _other(GERMAN)]


def _other(text: str) -> str:
    """The same words in another order."""
    return " ".join(sorted(text.split()))


def test_each_part_can_be_turned_off(tmp_path):
    options = PrepareOptions(identify=False, filter=False, deduplicate=False)
    accounts = run(tmp_path, options=options, de=[{"text": "x"}, {"text": "x"}, {"text": ENGLISH}])
    assert (accounts["de"].kept, accounts["de"].dropped) == (3, {})


WORDS = " ".join(f"wort{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(60))
BROKEN = {
    "too short": "nur wenige Worte",
    "too long": WORDS * 2000,
    "symbols": " ".join(f"{word} # ..." for word in WORDS.split()),
    "ellipses": WORDS + "\nund so weiter...\nund mehr…",
    "bullets": "\n".join(f"- {word} und" for word in WORDS.split()),
    "invisible": WORDS + "\u200b" * 20,
    "numbers": WORDS + " 123456789" * 20,
    "few letters": WORDS + " !?;:&%" * 80,
    "repeated lines": "\n".join([WORDS] + ["immer wieder dieselbe Zeile"] * 20),
    "repetition": WORDS + " und dann kam er herein und ging wieder hinaus" * 30,
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_drops_what_it_is_for(rule):
    assert why_unfit(BROKEN[rule], SPACED) == rule


def test_a_text_that_breaks_no_rule_is_fit():
    assert why_unfit(WORDS, SPACED) is None
    for language, sentence in LANGUAGES.items():
        limits = limits_of(language, min_units=3)
        assert why_unfit(sentence, limits) is None, language


def test_languages_without_spaces_are_measured_in_characters():
    assert set(LIMITS) >= {"zh", "ja", "th"}
    assert limits_of("zh-Hant", min_units=None).units_are_characters
    assert limits_of("zh", min_units=20).min_units == 40
    assert limits_of("de", min_units=20).min_units == 20
    assert why_unfit(JAPANESE[:30], limits_of("ja", min_units=None)) == "too short"


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("eins  \nhttps://example.org/x\nzwei www.example.org drei\r\n", "eins\nzwei www.example.org drei"),
        ("kurz " + "x" * 101 + " kurz", "kurz kurz"),
        ("\n\na\n\n\n\n\nb\0c\n", "a\n\nbc"),
        ("    def f():\n        return 1", "    def f():\n        return 1"),
    ],
)
def test_lines_are_fixed(text, fixed):
    assert fix_lines(text, SPACED) == fixed


def test_the_command_shows_what_went_and_why(tmp_path, capsys):
    (tmp_path / "de.jsonl").write_text(json.dumps({"text": GERMAN}) + "\n" + json.dumps({"text": "kurz"}) + "\n")
    assert main(["data", "prepare", str(tmp_path / "de.jsonl"), "--out", str(tmp_path / "out"), "--no-identify"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[-1].strip() == "too short"
    assert row.split() == ["de", "2", "1", str(len(GERMAN.strip().encode())), "1"]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["de"]["dropped"] == {"too short": 1}


def test_nothing_left_is_one_line_and_no_folder(tmp_path):
    with pytest.raises(TrainingError, match="no document is left: 1 too short"):
        run(tmp_path, options=PrepareOptions(identify=False), de=[{"text": "kurz"}])
    assert not (tmp_path / "out").exists()


def test_an_option_without_effect_is_refused(capsys):
    assert main(["data", "prepare", "x", "--out", "y", "--no-filter", "--min-words", "3"]) == 2
    assert "--min-words has no effect without filter" in capsys.readouterr().err
