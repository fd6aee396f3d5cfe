"""The demo's texts: pages become lines of text, the same pages are held out in every language, blocks are paired."""

import json

import numpy as np
import pytest

from polyserve_benchmarks.demo_train.corpus import _conversations
from polyserve_benchmarks.demo_train.judge import Verdict, documents_of, summary
from polyserve_benchmarks.demo_train.texts import aligned, blocks_of, help_pages

PAGE = """<html><body><h1>menu</h1><div id="DisplayArea">
<h1 id="hd_1">{title}</h1><p id="par_1">{text} <a href="x.html">A
link</a>.</p><p id="par_2"> </p><table><tr><td><p id="par_3">F4</p></td></tr></table></div>
<footer><p>debug</p></footer></body></html>"""


def write_pages(folder, title: str, text: str):
    for number in range(40):
        path = folder / f"text/{number % 3}/{number}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAGE.format(title=f"{title} {number}", text=f"{text} {number}"), encoding="utf-8")
    return folder / "text"


def test_a_page_is_its_blocks_without_what_stands_around_them(tmp_path):
    page = write_pages(tmp_path, "Titel", "Öffnet ein Fenster") / "0/0.html"
    assert blocks_of(page) == {"hd_1": "Titel 0", "par_1": "Öffnet ein Fenster 0 A link.", "par_3": "F4"}


def test_the_same_pages_are_held_out_in_every_language_and_none_is_learned_from(tmp_path):
    long = "word " * 50
    english = help_pages(write_pages(tmp_path / "en", "Title", long), max_bytes=None)
    german = help_pages(write_pages(tmp_path / "de", "Titel", long * 2), max_bytes=None)
    assert set(english.held_out) == set(german.held_out) != set()
    assert not set(english.train) & set(german.held_out)
    assert len(english.train) + len(english.held_out) == 40


def test_a_block_that_stands_on_many_pages_is_learned_from_once_and_not_judged_by(tmp_path):
    pages = help_pages(write_pages(tmp_path, "Title", "word " * 50), max_bytes=None)
    shortcuts = ["par_3" in blocks for blocks in pages.train.values()]
    assert shortcuts == [True] + [False] * (len(shortcuts) - 1)
    assert not any("par_3" in blocks for blocks in pages.held_out.values())
    assert all({"hd_1", "par_1"} <= set(blocks) for blocks in [*pages.train.values(), *pages.held_out.values()])


def test_a_page_with_little_that_is_new_is_left_out(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.html").write_text(PAGE.format(title=number, text="word " * 50), encoding="utf-8")
    pages = help_pages(tmp_path, max_bytes=None)
    assert (len(pages.train), len(pages.held_out)) == (1, 0)


def test_text_is_taken_until_there_is_enough(tmp_path):
    pages = help_pages(write_pages(tmp_path, "Title", "word " * 50), max_bytes=1000)
    size = sum(len(text.encode()) for blocks in pages.train.values() for text in blocks.values())
    assert 500 < size <= 1000


def test_conversations_ask_for_both_directions_and_leave_out_what_was_not_translated():
    english = {"a": {"1": "Opens a window.", "2": "Not translated."}, "b": {"1": "Only in English."}}
    german = {"a": {"1": "Öffnet ein Fenster.", "2": "Not translated."}}
    found = _conversations("de", aligned(english, german), 10)
    assert [[message["content"] for message in x["messages"]] for x in found] == [
        ["Opens a window.\nTranslate this sentence from English to German.", "Öffnet ein Fenster."],
        ["Öffnet ein Fenster.\nTranslate this sentence from German to English.", "Opens a window."],
    ]


def test_the_summary_says_what_falls_short():
    large = {"train_bytes": 300_000, "kneser_ney": 2.0}
    verdicts = [
        Verdict(language="en", first_stage=1.8, last=1.9, **large),
        Verdict(language="de", first_stage=2.2, last=2.1, **large),
        Verdict(language="th", train_bytes=9_000, kneser_ney=1.0, first_stage=3.0, last=3.3),
    ]
    found = summary(verdicts)
    assert found["beats_kneser_ney"] == {"en": True, "de": False}
    assert found["non_english_mean"] == {
        "first_stage": pytest.approx(2.6),
        "last": pytest.approx(2.7),
        "improves": False,
    }
    json.dumps(found)


def test_documents_come_back_from_shards_whole(tmp_path):
    from polyserve_training.data.shards import DatasetWriter, open_dataset

    documents = [[5, 6, 2], [7, 2], [8, 9, 10, 2]]
    with DatasetWriter(tmp_path / "x", tokenizer_sha256="", vocab_size=11, shard_tokens=4) as writer:
        for ids in documents:
            writer.append("de", ids, num_bytes=3)
        writer.finish()
    found = documents_of(open_dataset(tmp_path / "x").streams["de"])
    assert [ids.tolist() for ids in found] == documents
    assert all(isinstance(ids, np.ndarray) for ids in found)
