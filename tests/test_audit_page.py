"""ingest.audit_page: pairs side by side, urgent ones first, every text escaped."""

import html.parser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.audit import NEAR, SAME_BYTES, Pair
from ingest.audit_page import write_page
from ingest.choice import Choice, Excluded, Found, Kept, notes
from ingest.record import Record
from ingest.spool import Entry
from shards.codec import encode

EVIL = "<script>alert('x')</script>.png"


class OneImage:
    """Every entry is the same picture."""

    def read(self, entry: Entry) -> bytes:
        return encode(np.zeros((40, 400), np.uint8), "png")


def choice(
    pairs: list[Pair], splits: dict[str, str], patient: str | None = "set:1", near: bool = True
) -> Choice:
    keys = sorted({key for pair in pairs for key in (pair.first, pair.second)})
    entry = Entry("x", "", "sha", 0)
    found = [Found(Record(EVIL + key, key, ("a",), patient), entry, "set") for key in keys]
    kept = [
        Kept(f.record, f.entry, f.source, splits[f.record.key])
        for f in found
        if f.record.key in splits
    ]
    excluded = [Excluded(f.record, NEAR) for f in found if f.record.key not in splits]
    return Choice(found, kept, excluded, pairs, near)


def test_the_page_says_what_was_done(tmp_path: Path):
    pairs = [Pair("a", "b", NEAR, 7), Pair("c", "d", SAME_BYTES), Pair("c", "e", NEAR, 3)]
    splits = {"a": "train", "b": "test", "c": "val", "d": "val"}
    write_page(tmp_path, "set & co", choice(pairs, splits), OneImage())
    page = (tmp_path / "audit.html").read_text()
    html.parser.HTMLParser().feed(page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "set &amp; co" in page
    assert page.index("7 bits apart") < page.index("0 bits apart") < page.index("3 bits apart")
    assert page.count("data:image/jpeg;base64,") == 6
    assert "both stay, in different splits" in page
    assert "left out: near duplicate" in page
    assert '<td>patients in more than one split</td><td class="number across">1</td>' in page


def test_no_more_than_the_limit_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ingest.audit_page.SHOWN", 3)
    pairs = [Pair("a", f"b{i}", NEAR, i) for i in range(5)]
    write_page(tmp_path, "set", choice(pairs, {"a": "train"}), OneImage())
    page = (tmp_path / "audit.html").read_text()
    assert page.count("<img") == 6
    assert "2 more pairs are not shown" in page


def test_a_set_without_copies(tmp_path: Path):
    write_page(tmp_path, "set", choice([], {}), OneImage())
    assert "None were found" in (tmp_path / "audit.html").read_text()


def test_patients_that_nobody_knows_cannot_be_checked(tmp_path: Path):
    """Near duplicates in different splits are then the only evidence, with their number."""
    pairs = [Pair("a", "b", NEAR, 7), Pair("c", "d", NEAR, 3), Pair("e", "f", SAME_BYTES)]
    splits = {"a": "train", "b": "test", "c": "val", "d": "val", "e": "train", "f": "test"}
    made = choice(pairs, splits, patient=None)
    write_page(tmp_path, "set", made, OneImage())
    page = (tmp_path / "audit.html").read_text()
    assert (
        '<td>patients in more than one split</td><td class="number">cannot be checked</td>' in page
    )
    assert '<td>images of unknown patients</td><td class="number">6</td>' in page
    assert 'near duplicates in different splits</td><td class="number across">1</td>' in page
    assert "No patient is known: whether a patient has" in page
    assert notes(made)[0] == (
        "the patient is unknown for 6 of 6 images: whether one is in two splits cannot be "
        "checked, near duplicates are the only evidence: 1 across splits"
    )
    unsought = choice(pairs[2:], splits, patient=None, near=False)
    write_page(tmp_path, "set", unsought, OneImage())
    assert '<td class="number">not looked for</td>' in (tmp_path / "audit.html").read_text()
    assert notes(unsought)[0].endswith("cannot be checked, near duplicates were not looked for")
    one_split = choice(pairs, dict.fromkeys(splits, "test"), patient=None)
    assert notes(one_split)[0] == "the patient is unknown for 6 of 6 images"


def test_patients_that_are_known_in_part_are_checked_in_part(tmp_path: Path):
    made = choice([Pair("a", "b", NEAR, 7)], {"a": "train", "b": "test"})
    some = replace(made.kept[1], record=replace(made.kept[1].record, patient=None))
    write_page(tmp_path, "set", replace(made, kept=[made.kept[0], some]), OneImage())
    page = (tmp_path / "audit.html").read_text()
    assert '<td>patients in more than one split</td><td class="number">0</td>' in page
    assert "Where a patient is not known: whether a patient has" in page
