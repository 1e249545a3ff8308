"""The files of an output, cut off at every place where a kill may cut them."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from sightline.data.journal import Journal, log_of, open_journal, partial_of
from sightline.data.sources import Row, open_rows
from sightline.errors import DataError, UserError

SETTINGS = {"model": "m", "extra": {}, "prompt": "这是什么？\n"}


def row(name: str) -> Row:
    return {"id": name, "image": name, "conversations": [{"from": "human", "value": f"<image>\n{name} 你\u2028好"}]}


def add(journal: Journal, *names: str) -> None:
    for name in names:
        journal.add(name, row(name), Counter(replies=1, prompt_tokens=5), None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output that was cut off after three pictures."""
    path = tmp_path / "data.json"
    with open_journal(path, again=False) as journal:
        journal.begin(SETTINGS)
        add(journal, "c.png", "a.png", "b/d.png")
    return path


def test_what_is_kept_comes_back(out: Path) -> None:
    with open_journal(out, again=False) as journal:
        assert journal.rows == [row("c.png"), row("a.png"), row("b/d.png")]
        assert (journal.settings, journal.done) == (SETTINGS, {"a.png", "b/d.png", "c.png"})
        assert journal.spent == {"replies": 3, "prompt_tokens": 15}
        journal.begin(SETTINGS)
        journal.add("e.png", None, Counter(replies=2), "no JSON")
        journal.finish()
    assert [found["image"] for found in json.loads(out.read_bytes())] == ["a.png", "b/d.png", "c.png"]
    assert list(open_rows(out)) == [row("a.png"), row("b/d.png"), row("c.png")]
    assert sorted(path.name for path in out.parent.iterdir()) == ["data.json", "data.json.log.jsonl"]
    log = [json.loads(line) for line in log_of(out).read_bytes().split(b"\n")[:-1]]
    assert log[0] == {"settings": SETTINGS} and len(log) == 5
    assert log[-1] == {"image": "e.png", "spent": {"replies": 2}, "failed": "no JSON"}


def test_a_cut_at_any_byte_costs_at_most_the_last_row(out: Path) -> None:
    whole = partial_of(out).read_bytes()
    two = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for end in range(two, len(whole) + 1):
        partial_of(out).write_bytes(whole[:end])
        with open_journal(out, again=False) as journal:
            # A last row that lacks nothing but the end of its line is whole.
            assert journal.done == {"c.png", "a.png"} | ({"b/d.png"} if end >= len(whole) - 1 else set())
            add(journal, "z.png")
        assert [found["image"] for found in open_rows(partial_of(out))][-1] == "z.png"


def test_a_log_that_is_cut_goes_on(out: Path) -> None:
    log_of(out).write_bytes(log_of(out).read_bytes()[:-9])
    with open_journal(out, again=False) as journal:
        assert journal.spent["replies"] == 2 and len(journal.rows) == 3
        add(journal, "z.png")
    with open_journal(out, again=False) as journal:
        assert journal.spent["replies"] == 3 and journal.settings == SETTINGS


def test_a_kill_between_the_two_last_steps(out: Path) -> None:
    rows = partial_of(out).read_bytes()
    with open_journal(out, again=False) as journal:
        journal.finish()
    partial_of(out).write_bytes(rows)
    with open_journal(out, again=False) as journal:
        assert len(journal.rows) == 3


def test_again_puts_everything_aside(out: Path) -> None:
    rows = partial_of(out).read_bytes()
    for number in 1, 2:
        with open_journal(out, again=True) as journal:
            assert (journal.rows, journal.settings, +journal.spent) == ([], None, Counter())
            journal.begin(SETTINGS)
            add(journal, f"{number}.png")
    assert partial_of(out).with_name("data.json.partial.jsonl.1").read_bytes() == rows
    assert open_rows(partial_of(out).with_name("data.json.partial.jsonl.2"))[0] == row("1.png")
    assert log_of(out).with_name("data.json.log.jsonl.2").exists()


def test_one_process_at_a_time(out: Path) -> None:
    with open_journal(out, again=False):
        for again in False, True:
            with pytest.raises(UserError, match="is being written by another process"), open_journal(out, again=again):
                pass
    with open_journal(out, again=False) as journal:
        assert len(journal.rows) == 3


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "data.json"
    out.write_text("[1]")
    with pytest.raises(UserError, match="was not written by `data synthesize`"), open_journal(out, again=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
    with open_journal(out, again=True):
        pass
    assert (tmp_path / "data.json.1").read_text() == "[1]"


@pytest.mark.parametrize(
    ("which", "content", "error"),
    [
        ("log", b'{"settings": {}}\nx\n', "data.json.log.jsonl: line 2 is damaged"),
        ("log", b"[]\n", "data.json.log.jsonl was not written by `data synthesize`"),
        ("log", b"my own notes\nhalf a li", "data.json.log.jsonl was not written by `data synthesize`"),
        ("log", b'{"settings": 5}\n', "data.json.log.jsonl: line 1 is damaged"),
        ("partial", b"{\n{}\n", "data.json.partial.jsonl: .*broken JSON"),
        ("partial", b"{}\n", "data.json.partial.jsonl: row 1 names no picture"),
        ("out", b"[{}", "data.json: the array breaks off"),
    ],
)
def test_damage_is_named_not_repaired(out: Path, which: str, content: bytes, error: str) -> None:
    path = {"log": log_of(out), "partial": partial_of(out), "out": out}[which]
    path.write_bytes(content)
    with pytest.raises((UserError, DataError), match=error), open_journal(out, again=False):
        pass
    assert path.read_bytes() == content


def test_a_full_disk_is_the_users_to_mend(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_journal(out, again=False) as journal:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*data\.json \(No space left on device\)"):
            journal.finish()
    assert len(open_rows(partial_of(out))) == 3
