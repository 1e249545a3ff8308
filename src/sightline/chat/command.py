"""`sightline chat`: lines typed or piped in -> answers on standard output, remarks on standard error."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sightline.chat.session import Session, after, answer, next_question, reset, show, start
from sightline.errors import UserError, shown
from sightline.model.flags import load_model, model_flags
from sightline.runtime import console, say, seed_everything
from sightline.types import ImageRef

if TYPE_CHECKING:
    from sightline.model.generate import Memory, Sampling
    from sightline.model.load import VLM

HELP = """\
/image PATH_OR_URL   show an image with the next question; for several, once for each
/reset               forget the conversation and begin anew with the images of the command line (or: RESET)
/exit                leave (or: EXIT, Ctrl-D)
/help                this list
A backslash at the end of a line continues it on the next one. <image> in a question is the place of a waiting image,
otherwise images come first. Ctrl-C stops an answer."""

ANSWER, PLAIN = "\033[32m", "\033[0m"

NOT_FOR_TERMINALS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})
"""A model that says control characters must not steer the terminal."""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    model_flags(parser)
    add("--image", nargs="+", action="extend", default=[], metavar="PATH_OR_URL", help="shown with the first question")
    add("--system", metavar="TEXT", help="the system message, instead of the template's own")
    add("--max-new-tokens", type=_number(int, 1), default=2048, metavar="N", help="default: 2048")
    add("--temperature", type=_number(float, 0), default=0.1, metavar="T", help="0 is greedy; default: 0.1")
    add("--top-k", type=_number(int, 0), default=40, metavar="N", help="0 is all; default: 40")
    add("--top-p", type=_number(float, 0, 1), default=0.75, metavar="P", help="default: 0.75")
    add("--repetition-penalty", type=_number(float, 0.01), default=1.0, metavar="X", help="default: 1.0, none")
    add("--seed", type=int, default=0, metavar="N", help="of the choice of tokens; default: 0")


def run(args: argparse.Namespace) -> None:
    """Talk with a model about images, at the terminal or through a pipe.

    One line is one question; /help lists what else can be typed. In a pipe (echo question | sightline chat ...) nothing
    but the answers comes out. An answer that Ctrl-C stops stays in the conversation as far as it was seen; stopped
    before its first word, the question counts as not asked.
    """
    if sys.stdin is None or sys.stdout is None:
        raise UserError("standard input or output is closed; a chat reads from one and answers on the other")
    session = start(args.system, tuple(_image(name) for name in args.image))
    with console.status(f"loading {args.model}"):
        vlm = load_model(args)
    from sightline.model.generate import Memory, Sampling

    sampling = Sampling(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop_words),
    )
    seed_everything(args.seed)
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        dtype = str(vlm.model.dtype).removeprefix("torch.")
        say(f"{vlm.prompter.template.name}, {vlm.device}, {dtype}. /help lists what can be typed. {_waiting(session)}")
    failed = _talk(session, vlm, sampling, Memory(), at_terminal)
    if failed and not at_terminal:
        raise UserError(f"lines without an answer: {failed}, see above")


def _talk(session: Session, vlm: VLM, sampling: Sampling, memory: Memory, at_terminal: bool) -> int:
    """Answer or obey line by line; return the number of lines for which that was not possible, each with its remark."""
    failed = 0
    for line in _lines(at_terminal):
        try:
            match line.split(maxsplit=1) if line.startswith("/") or line in ("EXIT", "RESET") else []:
                case []:
                    if text := line.strip():
                        session = _turn(session, text, vlm, sampling, memory, at_terminal)
                case ["/exit" | "EXIT"]:
                    break
                case ["/reset" | "RESET"]:
                    session = reset(session)
                    say(f"The conversation is forgotten. {_waiting(session)}".rstrip())
                case ["/help"]:
                    say(HELP)
                case ["/image", name]:
                    session = show(session, _image(name.strip()))
                    say(_waiting(session))
                case ["/image"]:
                    raise UserError("/image needs a path or URL after it")
                case _:
                    raise UserError(
                        f"not sent: no command {shown(line)}; see /help, or put a blank in front to send it"
                    )
        except UserError as error:
            say(str(error))
            failed += 1
    return failed


def _turn(session: Session, text: str, vlm: VLM, sampling: Sampling, memory: Memory, at_terminal: bool) -> Session:
    """Ask, and print the answer while it comes."""
    question = next_question(session, text)
    coloured = at_terminal and console.color_system is not None and not console.no_color
    said = ""
    with _ctrl_c_only_stops(at_terminal) as stopped:
        for piece in answer(vlm, session, question, sampling, memory, stopped.is_set):
            said += piece
            shown = piece.translate(NOT_FOR_TERMINALS) if at_terminal else piece
            print(f"{ANSWER}{shown}{PLAIN}" if coloured else shown, end="", flush=True)
    print(flush=True)
    if stopped.is_set() and not said:
        say("Stopped: the question counts as not asked.")
        return session
    return after(session, question, said)


@contextmanager
def _ctrl_c_only_stops(at_terminal: bool) -> Iterator[threading.Event]:
    """At the terminal, Ctrl-C sets the event; the second one interrupts as ever."""
    stopped = threading.Event()
    if not at_terminal:
        yield stopped
        return

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(at_terminal: bool) -> Iterator[str]:
    """What is typed or piped in; a line that ends in a backslash goes on with the next one."""
    if at_terminal:
        with suppress(ImportError):  # Windows edits lines by itself
            import readline

            readline.parse_and_bind("tab: complete")  # file names
            readline.set_completer_delims(" ")
    begun: list[str] = []
    mark = "\ufeff"  # what editors of Windows put in front of a file
    while True:
        try:
            line = input((". " if begun else "> ") if at_terminal else "").removeprefix(mark)
            mark = ""
        except EOFError:
            if at_terminal:
                print()
            yield "\n".join(begun)
            return
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not {error.encoding}: {error.reason}, byte {error.start}") from error
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            begun = []
            print("\nCtrl-D leaves")
            continue
        begun.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield "\n".join(begun)
            begun = []


def _image(name: str) -> ImageRef:
    """An image as typed, or dropped into a terminal (quoted, blanks escaped), or with ~: checked and read at once."""
    from sightline.prompt.images import hold_image

    if not name.startswith(("http://", "https://", "data:")):
        if not os.path.exists(name):
            with suppress(ValueError):  # a quote that is no quote
                name = " ".join(shlex.split(name))
        name = os.path.expanduser(name)
    return hold_image(ImageRef(name))


def _waiting(session: Session) -> str:
    count = len(session.waiting)
    return f"{count} image{'s' * (count > 1)} will be shown with the next question." if count else ""


def _number(kind: Callable[[str], Any], least: float, most: float = float("inf")) -> Callable[[str], Any]:
    """A type of argparse: a number within bounds."""

    def number(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return number
