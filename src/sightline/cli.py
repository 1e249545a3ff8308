"""From a command line to the command's module: one table, imported when called; exit codes."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from sightline import __version__
from sightline.errors import UserError, UserErrors
from sightline.terminal import printable

LONGEST = 1000
"""Characters of a line of an error: three paths and what is to be said of them."""

COMMANDS = {
    "train": ("sightline.train.command", "train a model from a recipe"),
    "chat": ("sightline.chat.command", "talk with a model about pictures"),
    "mmbench": ("sightline.evaluate.choice", "score a model on multiple-choice questions"),
    "eval-answers": ("sightline.evaluate.answers", "score a model on questions with known answers"),
    "assemble": ("sightline.model.commands:assemble", "put a language model and a vision tower together"),
    "llamafy": ("sightline.model.commands:llamafy", "write InternLM, InternLM2 or Phi-3 as a Llama"),
    "convert": ("sightline.convert.command", "turn a checkpoint into a model folder"),
    "plan": ("sightline.train.plan_command", "tell parameters, memory and time of a recipe before it runs"),
    "data check": ("sightline.data_commands:check", "look at every row and every image, and report what is wrong"),
    "data show": ("sightline.data_commands:show", "print one row through every stage"),
    "data stats": ("sightline.data_commands:stats", "print the figures of data: rows, images, tokens, targets"),
    "data synthesize": ("sightline.data.synthesize", "have a model write questions and answers about your pictures"),
    "check-custom-dataset": ("sightline.data_commands:check", "the same as data check"),
    "log-dataset": ("sightline.train.log_dataset", "print conversations as the model will see them"),
    "data prepare": ("sightline.data.prepare", "fetch a known set of data and put it in its place"),
    "data verify": ("sightline.data.verify", "say what of a known set is there and what is missing"),
    "preprocess refcoco": ("sightline.data.refcoco", "turn RefCOCO's annotations into rows"),
    "list-cfg": ("sightline.recipe_commands:list", "list the recipes that come with Sightline"),
    "copy-cfg": ("sightline.recipe_commands:copy", "copy such a recipe, to change it"),
    "recipe show": ("sightline.recipe_commands:show", "print a recipe in full, defaults included"),
    "recipe check": ("sightline.recipe_commands:check", "name everything that is wrong with recipes"),
    "recipe schema": ("sightline.recipe_commands:schema", "print the JSON Schema of a recipe, for editors"),
    "data convert": ("sightline.data.convert", "write rows in another form"),
    "demo": ("sightline.demo.command", "draw a world, train a model that sees it, show the result"),
}
"""Command -> (its module, or module:suffix where a module has several; what it is for).

The module has `arguments(parser)` and `run(args)`, or `arguments_suffix(parser)` and `run_suffix(args)`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for a bug, 2 for what the user can mend, 130 when interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets its number; no work is lost over it.
        # Into a file or a pipe a line is written when it is whole: hours of work are not to be read at their end.
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # closed from the start: `>&-`
            sys.stdout.flush()
        return code
    except UserError as error:
        # Of any other error a line end is a character that some row or file holds.
        lines = str(error).split("\n") if isinstance(error, UserErrors) else [str(error)]
        for line in dict.fromkeys(lines):
            print(f"error: {_short(printable(line))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); without this, Python complains once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print(f"error: {printable(str(error.filename))[:100]}...: {error.strerror}", file=sys.stderr)
            return 2
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            traceback.print_exc()
            return 1
        print(f"error: {error.filename or 'the output'}: {error.strerror}; make room and call again", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception:
        traceback.print_exc()
        return 1


def _short(line: str) -> str:
    """A line of an error without the middle of what a library quotes in it; what to do stands at the end."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} ... {line[-300:]}"


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] in ("version", "-v", "--version"):
        print(f"sightline {__version__}")
        return 0
    name = " ".join(argv[:2])
    if name not in COMMANDS:
        name = argv[0]
    if name not in COMMANDS:
        return _unknown(argv)
    arguments, run = _functions(COMMANDS[name][0])
    parser = argparse.ArgumentParser(
        prog=f"sightline {name}",
        description=inspect.getdoc(run),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments(parser)
    parser.add_argument(
        "--raise-limit", action="append", metavar="NAME=NUMBER", help="take more of a file (docs/security.md)"
    )
    rest = argv[len(name.split()) :]
    try:
        args = parser.parse_intermixed_args(rest)  # so that key=value may stand after a flag
    except TypeError:  # a parser with subcommands has no intermixed form, and says so before it reads anything
        args = parser.parse_args(rest)
    if raised := vars(args).pop("raise_limit", None):
        from sightline.limits import set_by_flags

        set_by_flags(raised)
    run(args)
    return 0


def _functions(target: str) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]:
    module_name, _, suffix = target.partition(":")
    module = importlib.import_module(module_name)
    ending = f"_{suffix}" if suffix else ""
    return getattr(module, f"arguments{ending}"), getattr(module, f"run{ending}")


def overview() -> str:
    """What `sightline --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "Sightline gives any language model eyes.",
            "",
            "usage: sightline COMMAND ...",
            "",
            *lines,
            "",
            "`sightline COMMAND --help` says more about one of them, `sightline --version` which Sightline this is.",
        ]
    )


def _unknown(argv: list[str]) -> int:
    parts = [name.split()[1] for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    if parts and (len(argv) < 2 or argv[1] in ("-h", "--help")):
        print(f"usage: sightline {argv[0]} {{{','.join(parts)}}} ...", file=sys.stdout if len(argv) > 1 else sys.stderr)
        return 0 if len(argv) > 1 else 2
    asked = " ".join(argv[:2]) if parts else argv[0]
    near = difflib.get_close_matches(asked, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`sightline --help` lists them"
    raise UserError(f"no command is called {asked!r}; {hint}")
