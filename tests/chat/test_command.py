"""`sightline chat` as people call it: through a pipe, in a process of its own, and at a terminal."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from sightline.chat import command
from sightline.chat.session import start
from sightline.errors import UserError
from sightline.model.batched import replies
from sightline.model.generate import Memory, Sampling
from sightline.model.load import VLM
from sightline.types import ImageRef, ask

GREEDY = ("--temperature", "0", "--max-new-tokens", "12")


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return parser.parse_args(list(words))


@dataclass
class Chat:
    """Pipes lines into the command, with a model that is loaded already."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    out: str = ""
    remarks: str = ""

    def __call__(self, lines: str, *flags: str) -> str:
        """What came out; also kept when it fails."""
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        try:
            command.run(parse("model", *GREEDY, *flags))
        finally:
            self.out, self.remarks = self.capsys.readouterr()
        return self.out


@pytest.fixture
def chat(vlm: VLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    monkeypatch.setattr("sightline.model.load.load", lambda path, **settings: vlm)
    return Chat(monkeypatch, capsys)


def alone(vlm: VLM, text: str, *images: Path) -> str:
    question = ask(text, [ImageRef(image.read_bytes()) for image in images])
    return replies(vlm, [[question]], max_new_tokens=12, batch_size=1)[0]


def test_a_pipe_in_a_process_of_its_own(run_folder: Path, vlm: VLM, pictures: Path) -> None:
    image = pictures / "red.png"
    words = ("chat", str(run_folder), "--image", str(image), "--device", "cpu", *GREEDY)
    done = subprocess.run(
        [sys.executable, "-m", "sightline", *words],
        input="What colour?\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone(vlm, "What colour?", image) + "\n"
    assert done.stderr == f"{run_folder} is a run; its model is {run_folder / 'hf'}\n"


def test_a_bad_image_is_found_before_the_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sightline", "chat", str(tmp_path), "--image", str(tmp_path / "no.png")],
        input="What?\n",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: image {tmp_path / 'no.png'} is missing: no file {tmp_path / 'no.png'}\n"


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a model folder: it has no config\.json"):
        command.run(parse(str(tmp_path)))


def test_several_lines_are_several_turns(chat: Chat, vlm: VLM) -> None:
    first = alone(vlm, "What?")
    out = chat("What?\n\n  \nWhy?\n")
    assert out.startswith(first + "\n") and len(out) > len(first) + 2
    assert out != f"{first}\n{alone(vlm, 'Why?')}\n", "the second turn knows the first"


@pytest.mark.parametrize("word", ["/reset", "RESET"])
def test_reset_forgets(chat: Chat, vlm: VLM, pictures: Path, word: str) -> None:
    image = pictures / "red.png"
    said = alone(vlm, "What?", image)
    out = chat(f"What?\n/image {pictures / 'blue.png'}\n{word}\nWhat?\n", "--image", str(image))
    assert out == f"{said}\n{said}\n"
    assert "forgotten. 1 image will be shown" in chat.remarks


@pytest.mark.parametrize("word", ["/exit", "EXIT"])
def test_exit_leaves(chat: Chat, word: str) -> None:
    assert chat(f"{word}\nWhat?\n") == chat.remarks == ""


def test_help_is_a_remark(chat: Chat) -> None:
    assert chat("/help\n") == ""
    assert "/image PATH_OR_URL" in chat.remarks


@pytest.mark.parametrize("typed", ["{}", "'{}'", '"{}"'])
def test_images_join_the_next_question(chat: Chat, vlm: VLM, pictures: Path, typed: str) -> None:
    red, blue = pictures / "red.png", pictures / "blue.png"
    out = chat(f"/image {typed.format(red)}\n/image {typed.format(blue)}\nCompare.\n")
    assert out == alone(vlm, "Compare.", red, blue) + "\n"
    assert chat.remarks.splitlines() == [
        "1 image will be shown with the next question.",
        "2 images will be shown with the next question.",
    ]


def test_an_image_name_with_blanks(pictures: Path, tmp_path: Path) -> None:
    data = (pictures / "red.png").read_bytes()
    (tmp_path / "my 'own' cat.png").write_bytes(data)
    for typed in ("my 'own' cat.png", r"my\ \'own\'\ cat.png", "\"my 'own' cat.png\""):
        assert command._image(str(tmp_path / typed) if typed[0] != '"' else f'"{tmp_path}/{typed[1:]}').source == data


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("/image no.png", "image no.png is missing: no file no.png"),
        ("/image [red]x.png", "image [red]x.png is missing: no file [red]x.png"),
        ("/image", "/image needs a path or URL after it"),
        ("/imagine that", "not sent: no command '/imagine that'; see /help, or put a blank in front to send it"),
        ("/reset all", "not sent: no command '/reset all'; see /help"),
        ("Is <image> red?", "not sent: <image> is written 1 times, but 0 images wait for this question"),
        ("red " * 600, "not sent: with this question the conversation has"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_chat_goes_on(chat: Chat, vlm: VLM, line: str, remark: str) -> None:
    with pytest.raises(UserError, match="lines without an answer: 1"):
        chat(f"{line}\nWhat?\n")
    assert chat.out == alone(vlm, "What?") + "\n"
    assert chat.remarks.startswith(remark)
    assert len(chat.remarks.splitlines()) == 1


def test_a_backslash_continues_a_line(chat: Chat, vlm: VLM) -> None:
    assert chat("What colour\\\nis it?\n") == alone(vlm, "What colour\nis it?") + "\n"
    assert chat("What colour\\") == alone(vlm, "What colour") + "\n"


def test_a_blank_in_front_sends_a_command_as_a_question(chat: Chat, vlm: VLM) -> None:
    assert chat(" /help\n") == alone(vlm, "/help") + "\n"


def test_a_byte_order_mark_is_no_part_of_the_question(chat: Chat, vlm: VLM) -> None:
    assert chat("\ufeffWhat?\n") == alone(vlm, "What?") + "\n"
    assert chat("\ufeff/exit\nWhat?\n") == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_closed_input_or_output_is_one_line(run_folder: Path, closed: str) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m sightline chat '{run_folder}' {closed}", shell=True, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard input or output is closed") and done.stderr.count("\n") == 1


def test_the_seed_chooses_the_answer(chat: Chat) -> None:
    lively = ("--temperature", "2", "--top-k", "0", "--top-p", "1")
    one, again, other = (chat("What?\nWhy?\n", *lively, "--seed", seed) for seed in ("7", "7", "8"))
    assert one == again != other


def test_a_stop_word_ends_the_answer(chat: Chat, vlm: VLM) -> None:
    whole = alone(vlm, "What?")
    middle = whole[len(whole) // 2]
    assert chat("What?\n", "--stop-words", middle) == whole[: whole.index(middle)].strip() + "\n"


def test_a_url_is_fetched_once(chat: Chat, vlm: VLM, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    fetched: list[str] = []

    class Server(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            fetched.append(self.path)

    server = HTTPServer(("127.0.0.1", 0), partial(Server, directory=str(pictures)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        out = chat("What?\nWhy?\n/reset\nWhat?", "--image", f"http://127.0.0.1:{server.server_port}/red.png")
    finally:
        server.shutdown()
        server.server_close()
    assert fetched == ["/red.png"]
    said = alone(vlm, "What?", pictures / "red.png")
    assert out.startswith(said + "\n") and out.endswith(f"\n{said}\n")


@pytest.mark.parametrize(
    "flags",
    [
        ("--temperature", "-1"),
        ("--top-p", "1.5"),
        ("--max-new-tokens", "0"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--repetition-penalty", "inf"),
        ("--torch-dtype", "fp8"),
        ("--bits", "5"),
    ],
)
def test_values_out_of_bounds(flags: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("model", *flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def test_flags_of_xtuner_and_their_defaults() -> None:
    args = vars(parse("model", "--image", "a", "b", "--image", "c"))
    assert args["image"] == ["a", "b", "c"]
    expected = {
        "max_new_tokens": 2048,
        "temperature": 0.1,
        "top_k": 40,
        "top_p": 0.75,
        "repetition_penalty": 1.0,
        "seed": 0,
        "stop_words": [],
        "bits": None,
        "system": None,
        "prompt_template": None,
    }
    assert {name: args[name] for name in expected} == expected


@pytest.mark.parametrize("pieces", [0, 2])
def test_ctrl_c_stops_the_answer_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pieces: int
) -> None:
    def answer(*given: Any) -> Iterator[str]:
        stopped: Callable[[], bool] = given[-1]
        yield from ("A square", ", ")[:pieces]
        os.kill(os.getpid(), signal.SIGINT)
        if not stopped():
            yield "and on and on"

    monkeypatch.setattr(command, "answer", answer)
    before = signal.getsignal(signal.SIGINT)
    session = command._turn(start(), "What?", None, Sampling(), Memory(), at_terminal=True)  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr()
    if pieces:
        assert session.messages[-1].text == "A square, " and said.out == "A square, \n"
    else:
        assert session == start() and "counts as not asked" in said.err


def test_a_second_ctrl_c_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: Any) -> Iterator[str]:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        yield "and on and on"

    monkeypatch.setattr(command, "answer", answer)
    # A shell's background jobs begin with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            command._turn(start(), "What?", None, Sampling(), Memory(), at_terminal=True)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_model_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "answer", lambda *_: iter(["\x1b[2J", "a\tb\n", "\x07c\x9b"]))
    command._turn(start(), "What?", None, Sampling(), Memory(), at_terminal=True)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "[2Ja\tb\nc\n"
