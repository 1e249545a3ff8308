"""Every form of file that Sightline reads from strangers: a good one, what of it is changed, who reads it."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutate import changes_of_bytes, changes_of_json
from world import make_world

from sightline.cli import main
from sightline.data.formats import understand
from sightline.data.forms.keys import PLAIN
from sightline.data.sources import open_rows
from sightline.errors import DataError, shown

WORLD = Path()
"""Where the good files are, for commands that need one beside the bad one; set by `forms`."""

Run = Callable[[Path, random.Random], tuple[int, str]]


@dataclass(frozen=True)
class Form:
    """A form of file, and how it is tried."""

    name: str
    folder: Path
    """What is copied for each try."""
    files: Sequence[str]
    """Those that are changed, one a try."""
    run: Run
    """Reads the copy; returns an exit code, and a remark where something was lost."""
    changes: Sequence[Any] = field(default=(changes_of_json, changes_of_bytes))
    weight: int = 1


def call(*arguments: object) -> int:
    """An exit code of the command line, which argparse may leave by itself."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def forms(world: Path) -> list[Form]:
    """All of them; `world` is an empty folder that their good files are made in."""
    make_world(world)
    globals()["WORLD"] = world
    return [
        Form(
            "rows",
            world / "rows",
            ("llava.json", "llava.jsonl", "openai.jsonl", "swift.jsonl", "paddlemix.json", "texts.jsonl"),
            _rows,
            weight=6,
        ),
        Form("meta", world / "rows", ("meta.json",), _meta),
        Form("table", world / "table", ("rows.parquet",), _table, (changes_of_bytes,)),
        Form("recipe", world / "recipe", ("recipe.yaml",), _recipe, (changes_of_bytes,), weight=3),
        Form("tsv", world / "tsv", ("questions.tsv",), _tsv, (changes_of_bytes,), weight=2),
        Form(
            "model",
            world / "model",
            (
                "config.json",
                "preprocessor_config.json",
                "processor_config.json",
                "generation_config.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
            ),
            _model,
            weight=5,
        ),
        Form("tokenizer", world / "model", ("tokenizer.json", "tokenizer_config.json"), _tokenizer, weight=2),
        Form(
            "template",
            world / "model",
            ("chat_template.jinja",),
            _tokenizer,
            (changes_of_bytes, _changes_of_template),
            weight=2,
        ),
        Form("safetensors", world / "model", ("model.safetensors",), _model, (changes_of_bytes,)),
        Form("pickle", world / "pickle", ("mm_projector.bin",), _pickle, (changes_of_bytes,), weight=3),
        Form("adapter", world / "adapter", ("adapter_config.json", "adapter_model.safetensors"), _adapter, weight=2),
        Form(
            "archive",
            world / "archive",
            ("data.zip", "data.tar", "data.tar.gz"),
            _archive,
            (changes_of_bytes,),
            weight=2,
        ),
        Form(
            "image",
            world / "images",
            tuple(sorted(path.name for path in (world / "images").iterdir())),
            _image,
            (changes_of_bytes,),
            weight=4,
        ),
        Form(
            "checkpoint",
            world / "run",
            (
                "checkpoint-3/state.json",
                "checkpoint-3/optimizer.pt",
                "checkpoint-3/recipe.yaml",
                "checkpoint-3/weights.safetensors",
            ),
            _checkpoint,
            weight=1,
        ),
        Form("reply", world / "reply", ("reply.json",), _reply, weight=2),
    ]


def _rows(folder: Path, rng: random.Random) -> tuple[int, str]:
    file = folder / _CHANGED["name"]
    images = WORLD / "images"
    match rng.randrange(5):
        case 0:
            return call("data", "check", file, "--images", images), passed_over(file)
        case 1:
            words = ("--tokenizer", WORLD / "model", "--html", folder / "page.html")
            return call("data", "check", file, "--images", images, *words), passed_over(file)
        case 2:
            return call("data", "show", file, "0", "--images", images, "--tokenizer", WORLD / "model"), ""
    out = folder / "out.jsonl"
    code = call("data", "convert", file, out, "--to", rng.choice(("jsonl", "openai")))
    return code, "" if code else _lost(file, out)


def _lost(source: Path, out: Path) -> str:
    """The texts that stand in the rows, and not in what was made of them without a word."""
    written = out.read_text(encoding="utf-8")
    texts = (text for row in open_rows(source) for text, _ in _marked(row))
    return "; ".join(text for text in texts if json.dumps(text, ensure_ascii=False)[1:-1] not in written)[:200]


def passed_over(source: Path) -> str:
    """The texts of usable rows that no conversation holds, though neither they nor their keys were told."""
    try:
        rows = open_rows(source)
    except DataError:
        return ""
    lost = []
    for number in range(len(rows)):
        try:
            row = rows[number]
            conversation, findings = understand(row, rows.origin(number), str(WORLD / "images"))
        except DataError:
            continue  # a bad row, with its reason
        said = "\0".join(message.text for message in conversation.messages)
        told = "\0".join(finding.reason for finding in findings)
        is_cut = any(finding.kind == "assistant_first" for finding in findings)
        for text, keys in _marked(row):
            known = any(key in PLAIN or shown(key) in told for key in keys) or "further keys" in told
            if text not in said and not known and not is_cut:
                lost.append(f"{text} under {' > '.join(keys)}")
    return "; ".join(lost)[:200]


def _marked(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What people and models say in rows, which has a mark in it, with the keys that lead to it."""
    if isinstance(value, str):
        if "text-" in value and "<image" not in value:
            yield value, keys
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _marked(inner, (*keys, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _marked(inner, keys)


def _meta(folder: Path, rng: random.Random) -> tuple[int, str]:
    return call("data", "check", folder / "meta.json", "--images", WORLD / "images"), ""


def _table(folder: Path, rng: random.Random) -> tuple[int, str]:
    return call("data", "check", folder / "rows.parquet"), ""


def _recipe(folder: Path, rng: random.Random) -> tuple[int, str]:
    return call("recipe", rng.choice(("check", "show")), folder / "recipe.yaml"), ""


def _tsv(folder: Path, rng: random.Random) -> tuple[int, str]:
    return call("mmbench", WORLD / "model", "--data-path", folder / "questions.tsv", "--work-dir", folder / "out"), ""


def _model(folder: Path, rng: random.Random) -> tuple[int, str]:
    if rng.randrange(3):
        sys.stdin = io.StringIO("What is it?\n")
        return call("chat", folder, "--image", WORLD / "images" / "a.jpg", "--max-new-tokens", 3), ""
    return call(
        "convert", folder, folder / "out", "--to", rng.choice(("official", "xtuner", "huggingface")), "--no-verify"
    ), ""


def _tokenizer(folder: Path, rng: random.Random) -> tuple[int, str]:
    data = WORLD / "rows" / "llava.json"
    return call("data", "check", data, "--images", WORLD / "images", "--tokenizer", folder), ""


def _pickle(folder: Path, rng: random.Random) -> tuple[int, str]:
    parts = ("--llm", WORLD / "made" / "llm", "--vision-tower", WORLD / "made" / "tower")
    return call(
        "assemble",
        *parts,
        "--projector-from",
        folder / "mm_projector.bin",
        "--out",
        folder / "out",
    ), ""


def _adapter(folder: Path, rng: random.Random) -> tuple[int, str]:
    return call("convert", "merge", WORLD / "made" / "llm", folder, folder / "out"), ""


def _archive(folder: Path, rng: random.Random) -> tuple[int, str]:
    from sightline.data.unpack import unpack
    from sightline.errors import UserError

    try:
        unpack(folder / _CHANGED["name"], folder / "place")
    except UserError as error:
        print(f"error: {error}")
        return 2, ""
    return 0, ""


def _image(folder: Path, rng: random.Random) -> tuple[int, str]:
    name = _CHANGED["name"]
    (folder / "row.json").write_text(json.dumps([{"image": name, "conversations": [["<image>\nq", "a"]]}]))
    if rng.randrange(3):
        return call("data", "check", folder / "row.json", "--images", folder), ""
    return call(
        "data",
        "convert",
        folder / "row.json",
        folder / "out.json",
        "--to",
        "llava",
        "--images",
        folder,
        "--images-out",
        folder / "out",
    ), ""


def _checkpoint(folder: Path, rng: random.Random) -> tuple[int, str]:
    if rng.randrange(3):
        return call("train", WORLD / "made" / "recipe.yaml", "optim.max_steps=4", "--work-dir", folder, "--resume"), ""
    return call("convert", folder / "checkpoint-3", folder / "out", "--no-verify"), ""


def _reply(folder: Path, rng: random.Random) -> tuple[int, str]:
    from sightline.data import endpoint

    content = (folder / "reply.json").read_bytes()
    endpoint._post = lambda *_: content
    endpoint._wait = lambda *_: None
    address = ("--model", "m", "--base-url", "http://localhost:9/v1")
    return call(
        "data", "synthesize", folder, "--out", folder / "rows.json", *address, "--tries", 2, "--asks", 2, "-n", 2
    ), ""


def _changes_of_template(content: bytes, rng: random.Random) -> Any:
    piece = rng.choice(TEMPLATES).encode()

    def change(now: bytes) -> bytes:
        at = rng.randrange(len(now) + 1)
        return piece + now if rng.random() < 0.5 else now[:at] + piece + now[at:]

    return [change]


TEMPLATES = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 4000000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ raise_exception('\x1b]0;x\x07') }}",
    "{{ nothing.there }}",
    "{% if %}",
    "{{ ''.__class__.__mro__ }}",
    "{% include '/etc/passwd' %}",
    "{{ messages[0].content.x.y }}",
    "\x1b[2J",
)

_CHANGED: dict[str, str] = {}
"""The name of the file that was changed, for those that look at that one."""


def changed(name: str) -> None:
    """Tell the reader of a form which of its files was changed."""
    _CHANGED["name"] = name
