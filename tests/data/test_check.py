"""`data check`, `data stats` and their kin from the command line: every kind of finding, in small made files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from picture_files import huge_png, noise, saved, scene, turned
from tiny import make_llm, make_tokenizer, write_recipe

from sightline.cli import main
from sightline.data.layouts import known_entries
from sightline.data.verdict import KINDS

LIMIT = 256
FEATURES = 16

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sightline(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with 512 positions."""
    return make_llm(tmp_path_factory.mktemp("llm"))


def row(question: str = "What colour?", answer: str = "It is red.", image: Any = None, **more: Any) -> Row:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({} if image is None else {"image": image}), **more}


def pictured(image: Any, answer: str) -> Row:
    return row("<image>\nWhat is it?", answer, image)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(saved(scene(), "png"))
    (folder / "text.png").write_text("no picture")
    (folder / "cut.jpg").write_bytes(saved(noise(), "jpeg")[:9000])
    (folder / "huge.png").write_bytes(huge_png())
    (folder / "liar.png").write_bytes(saved(scene(), "jpeg"))
    (folder / "turned.jpg").write_bytes(saved(scene(), "jpeg", exif=turned(6)))
    (folder / "tiny.png").write_bytes(saved(scene(3, 2), "png"))
    return folder


CASES: dict[str, tuple[str | Row, str]] = {
    "broken_json": ('{"conversations": [{"from": "human"', "JSON"),
    "form": ({"id": "7", "text": "What?"}, "no 'conversations'"),
    "role": (
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "robot", "value": "Me."}]},
        "'robot'",
    ),
    "order": (
        {"conversations": [{"from": "human", "value": "What?"}, {"from": "human", "value": "Why?"}]},
        "turn 2 is the user's",
    ),
    "empty_answer": (row(answer="  "), "turn 2: the answer is empty"),
    "image_count": (row("<image> and <image>", "one", "good.png"), "<image>"),
    "image_word": (row("<image_1>\nWhat?", "one"), "'<image_1>' in a question"),
    "image_key": (row("What?", "one", img="good.png"), "'img' holds an image and is not read; did you mean 'image'?"),
    "image_in_answer": (row("Draw it", "<image>", "good.png"), "turn 2: an image in an answer"),
    "image_missing": (pictured("gone.png", "nothing"), "gone.png is missing"),
    "image_outside": (pictured("../good.png", "out"), "../good.png leads out of its folder"),
    "image_unreadable": (pictured("text.png", "text"), "text.png is not an image"),
    "image_bomb": (pictured("huge.png", "big"), "huge.png is too large"),
    "question_lost": (row("Where?", "there"), "the template plain leaves out what is asked"),
    "no_target": (row("why? " * 400, "so"), f"max_length {LIMIT}"),
    "image_cut": (row("<image>" * 20, "many", ["good.png"] * 20), f"max_length {LIMIT}"),
    "too_long": (row("Tell me.", "and then " * 200), f"{LIMIT}"),
    "image_in_front": (row("What is in front?", "a picture", "good.png"), "<image>"),
    "image_word_read": (row("What stands for it?", "<image_1> does"), "'<image_1>', in an answer"),
    "key": (row("What else?", "nothing", sistem="Be brief."), "'sistem' is not read; did you mean 'system'?"),
    "assistant_first": (
        {"conversations": [{"from": "gpt", "value": "So."}, *row("And then?", "The end.")["conversations"]]},
        "begins with the assistant",
    ),
    "image_extension": (pictured("liar.png", "lies"), "liar.png"),
    "image_turned": (pictured("turned.jpg", "turned"), "turned.jpg"),
    "image_tiny": (pictured("tiny.png", "tiny"), "tiny.png"),
    "control_token": (row("What does </s> mean?", "the end"), "</s>"),
    "duplicate": (row(), "row"),
    "other": (row("half a pair: \ud800", "no"), "surrogate"),
}
"""Kind -> (a row of it, what its reason names)."""


def write_lines(path: Path, rows: list[str | Row]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows))
    return path


def headed(kind: str) -> str:
    """The line above the findings of a kind, where there is one."""
    return f"{KINDS[kind].title} (1 {'key' if KINDS[kind].once else 'row'}): {KINDS[kind].remedy}"


def test_there_is_a_case_for_every_kind() -> None:
    assert list(CASES) == list(KINDS)


def test_the_page_for_users_has_every_kind() -> None:
    page = Path(__file__).parents[2] / "docs" / "your-own-data.md"
    lines = [line.strip("| \n").split(" | ") for line in page.read_text("utf-8").replace("`", "").splitlines()]
    listed = {tuple(cells) for cells in lines if len(cells) == 3}
    assert {(kind.title, "yes" if kind.bad else "no", kind.remedy) for kind in KINDS.values()} <= listed


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_told_apart(kind: str, sightline: Any, images: Path, tokenizer: Path, tmp_path: Path) -> None:
    bad_row, reason = CASES[kind]
    rows: list[str | Row] = [pictured("good.png", f"It is {number}.") for number in range(1, 4)]
    expected = 5 if kind == "duplicate" else 4
    if kind == "duplicate":
        rows.append(bad_row)
        reason = "row 4"
    path = write_lines(tmp_path / "rows.jsonl", [*rows, bad_row])
    page, findings = tmp_path / "check.html", tmp_path / "check_findings.jsonl"
    template = "plain" if kind == "question_lost" else "vicuna"
    flags = ("--images", images, "--max-length", LIMIT, "--tokens-per-image", FEATURES, "--template", template)
    said = sightline("data", "check", path, "--tokenizer", tokenizer, *flags, "--html", page)

    found = [json.loads(line) for line in findings.read_text().splitlines()]
    assert [(one["file"], one["row"], one["kind"]) for one in found] == [(str(path), expected, kind)]
    assert reason in found[0]["reason"] and found[0]["remedy"] == KINDS[kind].remedy

    origin = f"{path}: row {expected}: {found[0]['reason']}"
    assert f"{headed(kind)}\n" in said.out and f"    {origin}{' (1 row)' * KINDS[kind].once}\n" in said.out
    assert f"<td>{path}</td><td>{expected}</td>" in page.read_text()
    if KINDS[kind].bad:
        assert said.code == 2 and said.err.splitlines()[-1] == f"error: {origin}"
    else:
        assert said.code == 0 and "error" not in said.err


def test_all_kinds_in_one_file(sightline: Any, images: Path, tokenizer: Path, tmp_path: Path) -> None:
    kinds = [kind for kind in KINDS if kind != "question_lost"]  # which no chat has
    path = write_lines(tmp_path / "rows.jsonl", [*(CASES[kind][0] for kind in kinds), row()])
    flags = ("--images", images, "--max-length", LIMIT, "--tokens-per-image", FEATURES, "--template", "vicuna")
    said = sightline("check-custom-dataset", path, "--tokenizer", tokenizer, *flags)
    assert said.code == 2
    bad = sum(KINDS[kind].bad for kind in kinds)
    assert said.err.splitlines()[-1].startswith(f"error: {path}: row 1: ")
    assert said.err.splitlines()[-1].endswith(f" (and {bad - 1} more bad rows)")
    assert all(f"{headed(kind)}\n" in said.out for kind in kinds)
    assert not (tmp_path / "check.html").exists()


def test_good_data_is_shown_with_pictures_and_targets(
    sightline: Any, images: Path, tokenizer: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row(f"<image>\nWhat is {n}?", f"Number {n}.", "good.png") for n in range(5)]))
    page = tmp_path / "check.html"
    flags = ("--images", images, "--template", "vicuna", "--tokens-per-image", FEATURES, "--html", page)
    said = sightline("data", "check", path, "--tokenizer", tokenizer, *flags, "--sample", 3)
    assert said.code == 0 and "Nothing to complain about." in said.out
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert text.count('<span class="image">&lt;image&gt; x 16 tokens</span>') == 3
    assert text.count('<span class="target"> Number ') == 3


def test_without_a_tokenizer_all_but_lengths_is_checked(sightline: Any, images: Path, tmp_path: Path) -> None:
    rows = [row("long? " * 5000, "yes"), pictured("gone.png", "no"), pictured("good.png", "a square")]
    path = write_lines(tmp_path / "rows.jsonl", list(rows))
    page = tmp_path / "check.html"
    said = sightline("data", "check", path, "--images", images, "--html", page)
    assert said.code == 2 and "row 2: image gone.png is missing" in said.err
    assert "tokenizer: none" in said.out and "row 1:" not in said.out
    assert "tokens" not in said.out and "Tokens of a row" not in page.read_text()
    assert '<span class="target">a square</span>' in page.read_text()


def test_a_recipe_brings_its_tokenizer_and_all_its_sets(sightline: Any, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "world")
    said = sightline("data", "check", recipe)
    assert said.code == 0 and f"tokenizer: {tmp_path}/world/llm" in said.out and "tokens of an image: 16" in said.out
    shorter = sightline("data", "check", recipe, "batch.max_length=40")
    assert shorter.code == 2 and "max_length 40" in shorter.err
    data = str(tmp_path / "world/world/data.json")
    entry = {"path": data, "images": str(tmp_path / "world/world/images")}
    both = sightline("data", "stats", recipe, f"data={json.dumps([entry, {**entry, 'head': 6}])}", "--json")
    figures = json.loads(both.out)
    assert figures["rows"] == 30 and [one["rows"] for one in figures["sets"]] == [24, 6]
    assert figures["tokens"] == sum(one["tokens"] for one in figures["sets"]) > 0


def test_stats_are_the_figures_alone(sightline: Any, images: Path, tokenizer: Path, tmp_path: Path) -> None:
    rows = [pictured("good.png", "a"), pictured("tiny.png", "b"), row(), pictured("gone.png", "c")]
    path = write_lines(tmp_path / "rows.jsonl", list(rows))
    flags = ("--images", images, "--tokenizer", tokenizer, "--template", "vicuna")
    said = sightline("data", "stats", path, *flags, "--json")
    figures = json.loads(said.out)
    assert said.code == 0
    assert (figures["rows"], figures["bad"], figures["used"], figures["images"]) == (4, 1, 3, 2)
    assert figures["findings"] == {"image_missing": 1, "image_tiny": 1}
    assert figures["image_width"] == {"smallest": 3, "median": 60, "p95": 60, "p99": 60, "largest": 60}
    # CLIP's 576 tokens at least, where nothing else is said.
    assert figures["tokens_per_row"]["largest"] > 576 > figures["tokens_per_row"]["smallest"]
    assert "gone.png" not in sightline("data", "stats", path, *flags).out


def test_the_figures_of_an_epoch_are_those_of_its_samples(sightline: Any, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row(""), row("", answer=""), row("", "It is red, not blue.")])
    recipe = write_recipe(tmp_path / "world")
    sets = [{"path": str(path), "on_bad_row": "skip"}, {"path": str(path), "head": 1, "repeat": 3}]
    said = sightline("data", "stats", recipe, "model.template=plain", f"data={json.dumps(sets)}", "--json")
    figures = json.loads(said.out)
    # The plain template writes the answer and a line break; the words of the user are left out.
    tokenizer = make_tokenizer()
    short, long = (len(tokenizer.tokenize(text)) for text in ("It is red.\n", "It is red, not blue.\n"))
    assert [(one["rows"], one["bad"], one["used"]) for one in figures["sets"]] == [(3, 1, 2), (1, 0, 3)]
    assert [one["targets"] for one in figures["sets"]] == [short + long, 3 * short]
    assert [one["tokens"] for one in figures["sets"]] == [1 + short + 1 + long, 3 * (1 + short)]  # and <s>
    assert figures["tokens_per_row"]["largest"] == 1 + long and figures["longest"][0]["row"] == f"{path}: row 3"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("none.json",), "none.json is missing"),
        (("no_such_recipe",), "no recipe of this name"),
        (("rows.jsonl", "batch.max_length=3"), "rows.jsonl is a data file, not a recipe; flags"),
        (("rows.jsonl", "more.jsonl"), "several files make a recipe's `data`"),
        (("check_findings.jsonl", "--html", "check.html"), "would be overwritten"),
        (("rows.jsonl", "--max-length", "3"), "--max-length needs --tokenizer"),
        (("rows.jsonl", "--tokenizer", "llm", "--template", "plain", "--max-length", "513"), "for 512 tokens only"),
        (("rows.jsonl", "--tokenizer", "llm", "--template", "plain", "--tokens-per-image", "0"), "at least 1"),
        (("rows.jsonl", "--tokenizer", "llm"), "llm has no chat template; name one with --prompt-template"),
        (("rows.jsonl", "--html", "rows.jsonl"), "the name of a page ends in .html"),
        (("rows.jsonl", "--html", "none/page.html"), "there is no folder none"),
        (("rows.jsonl", "--tokenizer", "./none"), "no model folder"),
        (("rows.jsonl", "--images", "none"), "none"),
        (("rows.jsonl", "--tokenizer", "rows.jsonl"), "rows.jsonl is a file; name the folder of a model"),
        (("llava_v15_7b_pretrain", "--images", "x"), "--images is for a data file"),
        (("pictured.jsonl",), "no folder of images is given (--images, "),
        (("rows.jsonl", "--root", "x"), "--root is for a known set"),
        (("llava_pretrain_558k", "--images", "x"), "a known set brings its own"),
        (("mmbench",), "holds no rows to train on"),
        (("deep",), "it holds pictures: `sightline data synthesize` has a model write rows about them"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_line(
    argv: tuple[str, ...], message: str, sightline: Any, llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "rows.jsonl", [row()])
    write_lines(tmp_path / "pictured.jsonl", [pictured("a.png", "a")])
    (tmp_path / "llm").symlink_to(llm)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.JPG").touch()
    write_lines(tmp_path / "check_findings.jsonl", [row()])
    said = sightline("data", "check", *argv)
    assert said.code == 2 and message in said.err and len(said.err.splitlines()) == 1
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row()


def test_a_known_set_by_its_name(sightline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = sightline("data", "check", "llava_pretrain_558k")
    assert missing.code == 2 and "sightline data prepare llava_pretrain_558k --root data" in missing.err
    (file,) = known_entries("llava_pretrain_558k", "elsewhere")
    Path(file.images).mkdir(parents=True)
    Path(file.images, "1.png").write_bytes(saved(scene(), "png"))
    Path(file.path).write_text(json.dumps([pictured("1.png", "a"), pictured("2.png", "b")]))
    said = sightline("data", "check", "llava_pretrain_558k", "--root", "elsewhere")
    assert said.code == 2 and f"error: {file.path}: row 2: image 2.png is missing" in said.err
    assert sightline("data", "show", "llava_pretrain_558k", "1", "--root", "elsewhere").code == 0


def test_a_json_array_that_breaks_off_names_the_row(sightline: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row(), row("Next?")])[:-30])
    said = sightline("data", "check", path)
    assert said.code == 2 and str(path) in said.err and "row 2" in said.err
