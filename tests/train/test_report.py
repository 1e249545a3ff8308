"""The HTML report: well-formed, self-contained, safe against what a model may say, small for long runs."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline.errors import DataError, UserError
from sightline.train.curves import summary
from sightline.train.report import DataView, RunView, Sample, Score, ScoreRow, read_run, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """The tags, attributes and texts of a page, checking that every tag is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes itself outside of SVG"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def step(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": number,
        "loss": 1.0 + 3 * math.exp(-number / 50),
        "lr": {"llm": 2e-5, "projector": 1e-3},
        "grad_norm": 0.7,
        "tokens": 1800,
        "samples": 16,
        "targets": 300,
        "tokens_per_second": 6000.0 + number % 7,
        "samples_per_second": 50.0,
        "data_share": 0.02,
        "fill": 0.9,
        "memory_gb": 1.5,
        "seconds": 0.3,
        "eta_seconds": 1.0,
        "time": "2026-01-01T00:00:00.000+00:00",
    } | changes


def full(path: Path) -> str:
    """A report that has something of everything."""
    picture = Image.new("RGB", (56, 40), "white")
    write_report(
        path,
        title="A run & more",
        runs=[
            RunView(
                "finetune", [step(k) for k in range(1, 60)], "model: {llm: https://example.org/x}", {"torch": "2.13"}
            )
        ],
        samples=[
            Sample([picture], "Where?", "[0.1, 0.2, 0.5, 0.6]", "[0.1, 0.2, 0.4, 0.6]", False, "held-out"),
            Sample([picture, picture], "Which?", "the first [0, 0, 1, 1]", "the first", True),
            Sample([], "What is 1 + 1?", "2"),
        ],
        scores=[ScoreRow("held-out", {"before": Score(0.021), "after": Score(0.983, 0.012, 480)})],
        data=[DataView("mix.json", 10, 8, 1000, 250, [(64, 6), (128, 4)], {"text only": "20%"})],
        facts={"held-out answers": "98.3%"},
    )
    return path.read_text("utf-8")


def test_the_page_is_well_formed_and_complete(tmp_path: Path) -> None:
    page = Page(full(tmp_path / "report.html"))
    assert [page.text.count(text) for text in ("A run & more", "98.3% ± 1.2 of 480", "2.1%")] == [2, 1, 1]
    assert "✗ wrong held-out" in page.text and "✓ right" in page.text
    assert "targets among the tokens 25.0%" in page.text
    assert "model: {llm: https://example.org/x}" in page.text and "torch 2.13" in page.text
    charts = [svg["aria-label"] for svg in page.named("svg") if svg.get("class") == "chart"]
    assert charts == ["loss", "learning rate", "tokens per second", "gradient norm", "lengths of the samples"]
    assert {"llm", "projector"} <= {text.strip() for text in page.texts}
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    html = full(tmp_path / "report.html")
    page = Page(html)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    assert not page.named("script") and not page.named("img") and not page.named("iframe")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "style"):
            value = attributes.get(name, "")
            assert re.match(r"(data:|width:[\d.]+%$|$)", value), (tag, name, value[:80])
    policy = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_boxes_are_drawn_only_where_the_picture_is_certain(tmp_path: Path) -> None:
    page = Page(full(tmp_path / "report.html"))
    boxes = [rect for rect in page.named("rect") if "box" in rect["class"]]
    # 56 x 40 in 56 x 56: eight rows of padding above. The truth lies under the answer.
    assert [(box["class"], float(box["x"]), float(box["y"]), float(box["width"])) for box in boxes] == [
        ("box truth", 5.6, 3.2, 16.8),
        ("box answer", 5.6, 3.2, 22.4),
    ]


def test_whatever_people_and_models_write_stays_text(tmp_path: Path) -> None:
    evil = "</p><script>alert('x')</script>\"'&<b>"
    path = write_report(
        tmp_path / "report.html",
        title=evil,
        runs=[RunView(evil, [step(1, lr={evil: 1e-3}), step(2, lr={evil: 1e-3})], evil, {evil: evil})],
        samples=[Sample([], evil, evil, evil, True, evil)],
        scores=[ScoreRow(evil, {evil: Score(0.5)})],
        data=[DataView(evil, 1, 1, 1, 1, [(5, 1)], {evil: evil})],
        facts={evil: evil},
    )
    page = Page(path.read_text("utf-8"))
    assert not page.named("script") and len(page.named("b")) == 5  # the names of the charts
    assert page.texts.count(evil) >= 10


def test_nothing_to_report_is_a_page_too(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", title="empty").read_text("utf-8"))
    assert page.named("h2") == []
    page = Page(write_report(tmp_path / "report.html", title="x", runs=[RunView("new", [])]).read_text("utf-8"))
    assert "No step was logged." in page.text and page.named("polyline") == []


def test_steps_without_numbers_are_counted_and_left_out(tmp_path: Path) -> None:
    log = [step(1), step(2, loss=None, grad_norm=None, fill=None, memory_gb=None), step(3)]
    page = Page(write_report(tmp_path / "report.html", title="x", runs=[RunView("r", log)]).read_text("utf-8"))
    assert "Steps whose loss is no number: 1" in page.text
    log = [step(1, loss=None, grad_norm=None, seconds=0.0)]
    page = Page(write_report(tmp_path / "report.html", title="x", runs=[RunView("r", log)]).read_text("utf-8"))
    assert "no number" in page.text


def test_a_long_run_makes_no_long_page(tmp_path: Path) -> None:
    log = [step(number) for number in range(1, 20_001)]
    path = write_report(tmp_path / "report.html", title="long", runs=[RunView("long", log)])
    assert path.stat().st_size < 200_000
    assert "20,000" in path.read_text("utf-8")


def test_the_figures_of_a_run_are_those_of_its_steps() -> None:
    log = [step(1, seconds=9.0, data_share=1.0), step(2, loss=0.5), step(3, loss=0.25, data_share=0.5, memory_gb=2.0)]
    assert summary(log) == {
        "steps": "3",
        "samples": "48",
        "tokens": "5.4k",
        "loss at the end": "0.2500",
        "time of the steps": "10 s",
        "tokens/s": "6k",  # 3600 tokens in 0.6 s: without the first step, which warms up
        "waiting for data": "26.0%",
        "packs filled": "90.0%",
        "memory, at most": "2.00 GB",
    }


def test_a_run_folder_is_read_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "my_run"
    folder.mkdir()
    assert read_run(folder) == RunView("my_run", [])
    (folder / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "l')
    (folder / "recipe.yaml").write_text("model: {llm: x}\n")
    data = {"rows": 10, "bad_rows": 1, "images": 8, "tokens": 900, "targets": 90, "fingerprint": "abc"}
    about = {"versions": {"torch": "2.13"}, "seed": 42, "data": data, "lengths": [[64, 6], [128, 4]], "gpus": [1, 2]}
    (folder / "run.json").write_text(json.dumps(about))
    run = read_run(folder)
    assert run.log == [{"step": 1}] and run.recipe_yaml == "model: {llm: x}\n"
    assert run.facts == {"versions.torch": "2.13", "seed": "42", "gpus": "[1, 2]", "data.fingerprint": "abc"}
    assert run.data == DataView("my_run", 10, 8, 900, 90, [(64, 6), (128, 4)], {"bad rows": "1"})
    (folder / "run.json").write_text('{"seed": ')
    with pytest.raises(DataError, match=r"run\.json: not what a run writes"):
        read_run(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"5",
        b"null",
        b"\xff\xfe",
        b'{"data": 5}',
        b'{"data": {"rows": null}}',
        b'{"data": {"rows": "many"}}',
        b'{"data": {"rows": 1}, "lengths": null}',
        b'{"data": {"rows": 1}, "lengths": [1]}',
    ],
)
def test_a_damaged_run_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=r"run\.json: not what a run writes"):
        read_run(tmp_path)


def test_a_damaged_recipe_and_a_folder_that_is_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"llm: \xe9")
    with pytest.raises(DataError, match=r"recipe\.yaml: not UTF-8"):
        read_run(tmp_path)
    with pytest.raises(DataError, match=r"no run folder .*nowhere"):
        read_run(tmp_path / "nowhere")


def test_names_that_are_no_unicode_are_written_as_escapes(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", title="run \udce9 & more")
    assert Page(path.read_text("utf-8")).text.count("run \\udce9 & more") == 2


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere" / "report.html", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"cannot write the report {re.escape(str(path))}"):
            write_report(path, title="x")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
