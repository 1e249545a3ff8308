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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.chat.session import Session, after, answer, next_question, reset, show, start
from sightline.errors import UserError
from sightline.runtime import console, seed_everything
from sightline.types import ImageRef

if TYPE_CHECKING:
    from sightline.model.generate import Memory, Sampling
    from sightline.model.load import VLM

HELP = """\
/image PATH_OR_URL   show an image with the next question; several may be given, one after the other
/reset               forget the conversation and begin anew with the images of the command line (also: RESET)
/exit                leave (also: EXIT, Ctrl-D)
/help                this list
A backslash at the end of a line continues it on the next. <image> in a question is the place of a waiting image.
Ctrl-C stops an answer."""

# What readline does not print must be in \001 \002, or it takes it for text and miscounts the line.
PROMPT, CONTINUED = "\001\033[1;36m\002> \001\033[0m\002", "\001\033[1;36m\002. \001\033[0m\002"

_NOT_FOR_TERMINALS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})
"""A model that says control characters must not steer the terminal."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face LLaVA folder or hub id, or a run of sightline train")
    parser.add_argument("--image", nargs="+", action="extend", default=[], metavar="PATH_OR_URL",
                        help="shown with the first question")
    parser.add_argument("--system", metavar="TEXT", help="the system message, instead of the template's own")
    parser.add_argument("--prompt-template", metavar="NAME", help="instead of the one that the model was saved with")
    parser.add_argument("--max-new-tokens", type=_number(int, 1), default=2048, metavar="N")
    parser.add_argument("--temperature", type=_number(float, 0), default=0.1, metavar="T",
                        help="0 takes the most likely token every time (default: 0.1)")
    parser.add_argument("--top-k", type=_number(int, 0), default=40, metavar="N", help="0 takes all (default: 40)")
    parser.add_argument("--top-p", type=_number(float, 0, 1), default=0.75, metavar="P", help="(default: 0.75)")
    parser.add_argument("--repetition-penalty", type=_number(float, 0.01), default=1.0, metavar="X", help="(default: 1.0)")
    parser.add_argument("--stop-words", nargs="+", default=[], metavar="TEXT", help="also end an answer at these texts")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of tokens (default: 0)")
    parser.add_argument("--torch-dtype", choices=("auto", "fp16", "bf16", "fp32"), default="auto")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantise the language model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, npu or xpu")
    parser.add_argument("--llava", "--visual-encoder", dest="parts", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Talk with a model about images, at the terminal or through a pipe.

    One line is one question; /help lists what else can be typed. In a pipe (`echo question | sightline chat ...`) only the
    answers come out, one after the other. An answer stopped by Ctrl-C stays in the conversation as far as it was seen; one
    stopped before its first word counts as not asked for.
    """
    if args.parts is not None:
        raise UserError(
            "--llava and --visual-encoder are for models in several folders; MODEL is one folder that holds the "
            "language model, the vision tower and the projector: convert yours first (sightline convert --help)"
        )
    session = start(args.system, tuple(_image(name) for name in args.image))
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    vlm = _load(args)
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
    if at_terminal:
        remark(f"{vlm.prompter.template.name}, {vlm.device}, {str(vlm.model.dtype).removeprefix('torch.')}. "
               f"{_waiting(session)}/help lists what can be typed.")
    failed = _talk(session, vlm, sampling, Memory(), at_terminal)
    if failed and not at_terminal:
        raise UserError(f"{failed} of the lines were not answered")


def remark(text: str) -> None:
    """Say something that is no answer: one line, however long, on standard error."""
    console.print(text, style="dim", markup=False, soft_wrap=True)


def _talk(session: Session, vlm: VLM, sampling: Sampling, memory: Memory, at_terminal: bool) -> int:
    """Answer line by line; return how many lines could not be answered or obeyed, each with its remark."""
    failed = 0
    for line in _lines(at_terminal):
        word, _, rest = line.partition(" ")
        try:
            if line in ("/exit", "EXIT"):
                break
            if line in ("/reset", "RESET"):
                session = reset(session)
                remark(f"forgotten. {_waiting(session)}")
            elif line == "/help":
                remark(HELP)
            elif word == "/image" and rest.strip():
                session = show(session, _image(rest.strip()))
                remark(_waiting(session))
            elif line.startswith("/"):
                raise UserError(f"not sent: no command {line!r}; /help lists them, a blank in front sends the line as it is")
            elif line.strip():
                session = _turn(session, line.strip(), vlm, sampling, memory, at_terminal)
        except UserError as error:
            remark(str(error))
            failed += 1
    return failed


def _turn(session: Session, text: str, vlm: VLM, sampling: Sampling, memory: Memory, at_terminal: bool) -> Session:
    """Ask and print the answer while it comes."""
    question = next_question(session, text)
    said = ""
    with _stopped_by_ctrl_c() as stopped:
        for piece in answer(vlm, session, question, sampling, memory, stopped):
            said += piece
            sys.stdout.write(piece.translate(_NOT_FOR_TERMINALS) if at_terminal else piece)
            sys.stdout.flush()
        interrupted = stopped.is_set()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if interrupted and not said:
        remark("stopped: the question counts as not asked")
        return session
    return after(session, question, said)


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[threading.Event]:
    """Ctrl-C sets the event; a second one interrupts as ever."""
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(at_terminal: bool) -> Iterator[str]:
    """What is typed or piped in, lines that end in a backslash joined with the next one."""
    if at_terminal:
        with suppress(ImportError):  # Windows has none
            import readline

            readline.parse_and_bind("tab: complete")
    held = ""
    while True:
        try:
            line = input((CONTINUED if held else PROMPT) if at_terminal else "")
        except EOFError:
            if at_terminal:
                print()
            if held:
                yield held
            return
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not {error.encoding}: {error.reason} at byte {error.start}") from error
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            print()
            remark("Ctrl-D leaves")
            held = ""
            continue
        held += line.removesuffix("\\")
        if line.endswith("\\"):
            held += "\n"
            continue
        yield held
        held = ""


def _image(name: str) -> ImageRef:
    """An image as it is typed or dropped into a terminal (quoted, blanks escaped, ~), checked and read at once."""
    from sightline.prompt.images import hold_image

    if not name.startswith(("http://", "https://", "data:")):
        if not Path(name).exists():
            with suppress(ValueError):
                name = " ".join(shlex.split(name))
        name = os.path.expanduser(name)
    return hold_image(ImageRef(name))


def _waiting(session: Session) -> str:
    match len(session.waiting):
        case 0:
            return ""
        case 1:
            return "1 image waits for the next question. "
        case number:
            return f"{number} images wait for the next question. "


def _load(args: argparse.Namespace) -> VLM:
    from sightline.model.load import load

    path = args.model
    if not Path(path, "config.json").exists() and Path(path, "hf", "config.json").exists():
        path = str(Path(path, "hf"))
        remark(f"{args.model} is a run; its model is in {path}")
    with console.status(f"loading {path}"):
        return load(path, device=args.device, dtype=args.torch_dtype, template=args.prompt_template, bits=args.bits)


def _number(kind: Callable[[str], Any], least: float, most: float = float("inf")) -> Callable[[str], Any]:
    """A type of argparse: a number within bounds."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not " + (f"{least} or more" if most > 1 else f"from {least} to {most}"))
        return value

    parse.__name__ = "number"
    return parse
