"""The command against a local server: what is in the file, whatever happens on the way to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_endpoint import Answer, Asked, Server, pairs_text, says, serving
from PIL import Image

from sightline.cli import main
from sightline.data.formats import to_conversation
from sightline.data.journal import log_of, partial_of
from sightline.data.sources import open_rows
from sightline.data.synthesize import pictures

KEY = "sk-very-secret-0123"


def grey(asked: Asked) -> int:
    """Which of the test's pictures this is: they are grey, each in its own shade."""
    return round(asked.picture().convert("L").resize((1, 1)).getpixel((0, 0)) / 10)


def on_its_grey(asked: Asked) -> Answer:
    number = grey(asked)
    answer = says(pairs_text(2, f"grey {number}"))
    answer.late = 0.02 * (number % 3)  # so that replies come in another order
    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(on_its_grey) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures in three folders; number i has the grey 10 i."""
    for number in range(12):
        path = tmp_path / "pictures" / ("", "b c", "d/é")[number % 3] / f"{number:02d}.{('png', 'JPG')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (10 * number,) * 3).save(path)
    return tmp_path / "pictures"


def command(server: Server, folder: Path, *flags: str) -> list[str]:
    base = ["data", "synthesize", str(folder), "--out", str(folder.parent / "data.json"), "--model", "m"]
    return [*base, "--base-url", server.url, "-n", "2", *flags]


def check_rows(folder: Path, numbers: set[int]) -> None:
    """The output holds these pictures, in order of their names, each with what was said about it."""
    rows = list(open_rows(folder.parent / "data.json"))
    names = [row["image"] for row in rows]
    assert names == sorted(names)
    assert {int(Path(name).stem) for name in names} == numbers and len(names) == len(numbers)
    for row in rows:
        conversation = to_conversation(row, "row", folder)
        (image,) = conversation.images
        assert image.source == row["image"] and (folder / row["image"]).is_file()
        number = int(Path(row["image"]).stem)
        assert conversation.messages[0].text == f"<image>\nQuestion 0 on grey {number}?"
        assert [message.text for message in conversation.messages[1:]] == [
            f"Answer 0 on grey {number}.",
            f"Question 1 on grey {number}?",
            f"Answer 1 on grey {number}.",
        ]


def test_a_folder_becomes_a_file(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(server, folder, "--concurrency", "4")) == 0
    check_rows(folder, set(range(12)))
    out = folder.parent / "data.json"
    assert isinstance(json.loads(out.read_text("utf-8")), list)
    assert capsys.readouterr().out == (
        f"rows in {out}: 12; tokens: 1,200 sent, 120 received, replies: 12\n"  # each reply says 100 and 10
    )
    assert 1 < server.at_once <= 4
    assert sorted(path.name for path in folder.parent.iterdir()) == ["data.json", "data.json.log.jsonl", "pictures"]
    assert KEY not in out.read_text() + log_of(out).read_text()
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_the_file_does_not_depend_on_concurrency(server: Server, folder: Path) -> None:
    out, found = folder.parent / "data.json", []
    for threads in "1", "8":
        assert main(command(server, folder, "--concurrency", threads, "--again")) == 0
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_a_second_start_has_nothing_to_do(server: Server, folder: Path) -> None:
    assert main(command(server, folder)) == 0
    before = (folder.parent / "data.json").stat().st_mtime_ns
    assert main(command(server, folder)) == 0
    assert len(server.asked) == 12
    assert (folder.parent / "data.json").stat().st_mtime_ns == before


def test_new_pictures_are_added(server: Server, folder: Path) -> None:
    assert main(command(server, folder, "--head", "5")) == 0
    check_rows(folder, {0, 3, 6, 9, 1})  # of the folder itself, then the first of "b c"
    assert main(command(server, folder)) == 0
    check_rows(folder, set(range(12)))
    assert sorted(map(grey, server.asked)) == list(range(12))


def test_a_kill_loses_nothing(server: Server, folder: Path) -> None:
    def slow(asked: Asked) -> Answer:
        time.sleep(0.15)
        return on_its_grey(asked)

    server.reply = slow
    out = folder.parent / "data.json"
    argv = [sys.executable, "-m", "sightline", *command(server, folder, "--concurrency", "2")]
    for kept in 3, 7:
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        deadline = time.monotonic() + 60
        while not partial_of(out).exists() or partial_of(out).read_bytes().count(b"\n") < kept:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
        assert len(open_rows(partial_of(out))) >= kept  # what the user sees is whole rows
    assert main(command(server, folder)) == 0
    check_rows(folder, set(range(12)))
    assert len(server.asked) <= 12 + 2 * 2  # but for the requests under way, nothing was paid for twice
    assert not partial_of(out).exists()


def test_failures_in_succession_stop_the_work(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.reply = lambda asked: on_its_grey(asked) if grey(asked) < 7 else Answer(status=400)
    assert main(command(server, folder, "--concurrency", "1", "--patience", "2")) == 2
    out = folder.parent / "data.json"
    printed = capsys.readouterr().err
    # In order of names: 00 03 06 09, then "b c": 01 04 07 10
    assert "error: 2 pictures in succession got no row, the last: HTTP 400" in printed
    kept = len(open_rows(partial_of(out)))
    assert kept in (5, 6)  # 02 may have been under way
    assert f"rows kept so far: {kept}, the same command goes on from there; tokens: {kept}00 sent" in printed
    assert not out.exists()
    server.reply = on_its_grey
    assert main(command(server, folder)) == 0
    check_rows(folder, set(range(12)))


def test_pictures_without_a_row_are_named_and_asked_about_again(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {10: Answer(b'{"error": "too small"}', status=400), 5: says("A cat."), 6: Answer(status=500)}
    for answer in bad.values():
        answer.headers["Retry-After"] = "0"
    server.reply = lambda asked: bad.get(grey(asked)) or on_its_grey(asked)
    (folder / "broken.png").write_text("no picture")
    (folder / "notes.txt").write_text("no picture either")
    # No two failures in succession: next to 10 is the broken picture, which is no failure of the endpoint's.
    assert main(command(server, folder, "--concurrency", "1", "--patience", "2")) == 2
    check_rows(folder, set(range(12)) - {5, 6, 10})
    printed = capsys.readouterr()
    assert "b c/10.png: HTTP 400 (too small)" in printed.err
    assert "d/é/05.JPG: asked 3 times, no reply fits: it is no JSON" in printed.err
    assert "06.png: HTTP 500, 6 times in all" in printed.err
    assert "broken.png: image broken.png is not an image" in printed.err
    assert "error: pictures without a row: 3; the same command asks about them again" in printed.err
    assert printed.out.startswith(
        f"rows in {folder.parent / 'data.json'}: 9 (unreadable pictures left out: 1); tokens: 1,200 sent"
    )
    events = [json.loads(line) for line in log_of(folder.parent / "data.json").read_text().splitlines()]
    assert {event["image"] for event in events if "failed" in event} == {
        "b c/10.png",
        "d/é/05.JPG",
        "06.png",
        "broken.png",
    }
    server.reply = on_its_grey
    assert main(command(server, folder)) == 0  # a picture that is none is no reason to fail
    check_rows(folder, set(range(12)))
    assert "tokens: 1,500 sent, 150 received, replies: 15" in capsys.readouterr().out


def test_a_wrong_key_ends_the_work_and_loses_nothing(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Answer(f'{{"error": {{"message": "no key {KEY}"}}}}'.encode(), status=401)
    server.reply = lambda asked: wrong if len(server.asked) > 4 else on_its_grey(asked)
    assert main(command(server, folder, "--concurrency", "2")) == 2
    printed = capsys.readouterr()
    assert "HTTP 401 (no key ***): check OPENAI_API_KEY" in printed.err
    assert KEY not in printed.out + printed.err
    assert len(server.asked) <= 6
    assert len(open_rows(partial_of(folder.parent / "data.json"))) == 4


@pytest.mark.parametrize(
    ("flags", "change"),
    [
        (["--model", "other"], "model 'm' (now 'other')"),
        (["-n", "3"], "n 2 (now 3)"),
        (["--language", "German"], "language None (now 'German')"),
        (["--prompt", "prompt.txt"], "another prompt"),
        (["--extra", '{"temperature": 0}'], "extra {} (now {'temperature': 0})"),
    ],
)
def test_one_file_is_made_in_one_way(
    server: Server,
    folder: Path,
    flags: list[str],
    change: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("prompt.txt").write_text("Ask about colours.")
    assert main(command(server, folder, "--head", "2")) == 0
    capsys.readouterr()
    before = Path("data.json").read_bytes()
    assert main(command(server, folder, *flags)) == 2
    assert f"were made with {change}; say the same" in capsys.readouterr().err
    assert len(server.asked) == 2 and Path("data.json").read_bytes() == before
    server.reply = lambda asked: says(pairs_text(3 if "3" in flags else 2))
    assert main(command(server, folder, *flags, "--again", "--head", "3")) == 0
    assert len(server.asked) == 5
    assert Path("data.json.1").read_bytes() == before and Path("data.json.log.jsonl.1").exists()
    assert len(open_rows("data.json")) == 3
    if "--prompt" in flags:
        assert server.asked[-1].body["messages"][0]["content"][0]["text"].startswith("Ask about colours.")


def test_a_moved_folder_goes_on_another_one_does_not(server: Server, folder: Path, tmp_path: Path) -> None:
    assert main(command(server, folder, "--head", "6")) == 0
    moved = folder.rename(tmp_path / "moved")
    assert main(command(server, moved)) == 0
    assert len(server.asked) == 12
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (9, 9)).save(other / "00.png")
    assert main(command(server, other)) == 2
    assert len(server.asked) == 12


def test_rows_that_the_user_has_changed_stay_changed(server: Server, folder: Path) -> None:
    assert main(command(server, folder, "--head", "3")) == 0
    out = folder.parent / "data.json"
    rows = json.loads(out.read_text())
    rows[0]["conversations"][1]["value"] = "Corrected by hand. 你好"
    out.write_text(json.dumps([*rows, rows[0]], indent=2))
    assert main(command(server, folder)) == 0
    again = json.loads(out.read_text("utf-8"))
    assert len(again) == 13 and again[:2] == [rows[0], rows[0]]


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    here = folder.parent
    (here / "foreign.json").write_text("[]")
    (here / "empty.txt").write_text(" \n")
    (here / "latin.txt").write_bytes(b"\xe9")
    (here / "none").mkdir()
    return {
        "foreign": (["--out", f"{here}/foreign.json"], "was not written by `data synthesize`"),
        "jsonl": (["--out", f"{here}/a.jsonl"], "its name ends in .json"),
        "nowhere": (["--out", f"{here}/nowhere/a.json"], "No such file or directory"),
        "no prompt": (["--prompt", f"{here}/zzz"], "cannot be read (No such file or directory)"),
        "empty prompt": (["--prompt", f"{here}/empty.txt"], "is empty"),
        "latin prompt": (["--prompt", f"{here}/latin.txt"], "it is not UTF-8"),
        "address": (["--base-url", "localhost"], "is no http(s) address"),
    }


@pytest.mark.parametrize(
    "name", ["foreign", "jsonl", "nowhere", "no prompt", "empty prompt", "latin prompt", "address"]
)
def test_bad_input(server: Server, folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags, message = bad_inputs(folder)[name]
    assert main(command(server, folder, *flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert server.asked == []
    assert (folder.parent / "foreign.json").read_text() == "[]"


def test_folders_without_pictures(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    for folder, message in (tmp_path / "none", "holds no pictures"), (tmp_path / "zzz", "is no folder"):
        assert main(command(server, folder)) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["-n", "0"], ["-n", "two"], ["--timeout", "9" * 15], ["--extra", "{"], ["--extra", "[]"], ["--extra", '{"n": 2}']],
)
def test_bad_flags(server: Server, folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(command(server, folder, *flags))
    assert "_positive" not in capsys.readouterr().err


def test_what_counts_as_a_picture(tmp_path: Path) -> None:
    names: dict[str, Any] = dict.fromkeys(
        ["b.PNG", "a/z.jpeg", "a.webp", "a/.hidden.jpg", ".cache/x.jpg", "c.txt", "jpg"]
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)  # a loop
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "zzz")
    assert pictures(tmp_path) == ["a.webp", "a/z.jpeg", "b.PNG", "gone.jpg"]
