"""What a run wrote, and what its model said -> one self-contained HTML page: no script, nothing fetched, printable."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from sightline.errors import DataError
from sightline.page.charts import figure, histogram_chart, swatch
from sightline.page.page import facts_list, section, write_page
from sightline.page.pictures import Picture, boxes_in, open_picture, picture_svg
from sightline.train.curves import curves
from sightline.train.metrics import FILE, read_log


@dataclass(frozen=True, slots=True)
class DataView:
    """The statistics of a data set."""

    name: str
    rows: int
    images: int
    tokens: int
    targets: int
    lengths: Sequence[tuple[int, int]] = ()
    """How many samples have up to so many tokens: (upper end, count)."""

    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as the report shows it."""

    name: str
    log: Sequence[Mapping[str, Any]]
    """The lines of `log.jsonl`."""

    recipe_yaml: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Versions, seed, fingerprints: what `run.json` holds."""

    data: DataView | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A question about pictures and what the model answered."""

    pictures: Sequence[Picture]
    question: str
    answer: str
    truth: str = ""
    right: bool | None = None
    """Whether the answer counts as right; None: nobody has judged it."""

    note: str = ""
    """Where it comes from: "held-out", "stage 1"."""


@dataclass(frozen=True, slots=True)
class Score:
    """A share of right answers."""

    share: float
    half_width: float | None = None
    """Half of the confidence interval, as a share too."""

    count: int | None = None
    """Out of how many questions."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of the table of scores."""

    name: str
    scores: Mapping[str, Score]
    """Column -> score: {"before": ..., "after": ..., "grey picture": ...}; the rows need not share all columns."""


def read_run(folder: Path | str) -> RunView:
    """A run folder as the report shows it: its `log.jsonl`, `recipe.yaml` and `run.json`, as far as they are there.

    Raises DataError when the folder is none, or one of them is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no run folder {folder}")
    log, recipe, about = folder / FILE, folder / "recipe_of_run.yaml", folder / "run.json"
    if not recipe.exists():
        recipe = folder / "recipe.yaml"
    name = folder.resolve().name
    try:
        facts, data = _facts_and_data(name, json.loads(about.read_text("utf-8"))) if about.exists() else ({}, None)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{about}: not what a run writes ({error}); mend or remove the file") from error
    try:
        recipe_yaml = recipe.read_text("utf-8") if recipe.exists() else ""
    except UnicodeDecodeError as error:
        raise DataError(f"{recipe}: not UTF-8 ({error.reason}); mend or remove the file") from error
    return RunView(name, read_log(log) if log.exists() else [], recipe_yaml, facts, data)


def _facts_and_data(name: str, about: dict[str, Any]) -> tuple[dict[str, str], DataView | None]:
    counts, lengths = about.get("data"), about.get("lengths", [])
    facts = dict(_flat({key: value for key, value in about.items() if key not in ("data", "lengths")}))
    if not counts:
        return facts, None
    if "fingerprint" in counts:
        facts["data.fingerprint"] = str(counts["fingerprint"])
    return facts, _data_view(name, counts, lengths)


def _data_view(name: str, counts: Mapping[str, Any], lengths: Sequence[tuple[int, int]]) -> DataView:
    """The data set of a run, by the counts in its `run.json`; other numbers among them are shown beside them."""
    own = {key: int(counts.get(key, 0)) for key in ("rows", "images", "tokens", "targets")}
    others = {key: value for key, value in counts.items() if key not in own and isinstance(value, int)}
    return DataView(
        name=name,
        rows=own["rows"],
        images=own["images"],
        tokens=own["tokens"],
        targets=own["targets"],
        lengths=[(end, count) for end, count in lengths],
        facts={key.replace("_", " "): f"{value:,}" for key, value in others.items()},
    )


def write_report(
    path: Path | str,
    *,
    title: str,
    runs: Sequence[RunView] = (),
    samples: Sequence[Sample] = (),
    scores: Sequence[ScoreRow] = (),
    data: Sequence[DataView] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write the page; parts without content are left out.

    `facts` are the few figures that stand at the top; `data` is for data sets beside those of the runs. Raises
    DataError when a picture cannot be read, UserError when the page cannot be written.
    """
    parts = [
        facts_list(facts or {}, "facts head"),
        section("Scores", _scores(scores)),
        section("Questions and answers", _samples(samples)),
        section("Training", "".join(f"<h3>{escape(run.name)}</h3>{curves(run.log)}" for run in runs)),
        section("Data", "".join(_data(view) for view in [*data, *(run.data for run in runs if run.data)])),
        section("Recipes and versions", "".join(_origin(run) for run in runs)),
    ]
    return write_page(path, title, parts)


def _scores(rows: Sequence[ScoreRow]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(column for row in rows for column in row.scores))
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>'
        + "".join(f"<td>{_score(row.scores.get(column))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    note = ""
    if any(score.half_width is not None for row in rows for score in row.scores.values()):
        note = '<p class="note">± half of the confidence interval, in points of per cent.</p>'
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">share of right answers</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _score(score: Score | None) -> str:
    if score is None:
        return ""
    width = "" if score.half_width is None else f" <small>± {100 * score.half_width:.1f}</small>"
    count = "" if score.count is None else f" <small>of {score.count:,}</small>"
    share = min(max(score.share, 0.0), 1.0)
    return (
        f'<span class="score">{score.share:.1%}</span>{width}{count}'
        f'<span class="meter"><i style="width:{share:.1%}"></i></span>'
    )


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    cards = [_sample(sample) for sample in samples]
    key = swatch("box of the answer", "answer") + swatch("box of the truth", "truth")
    note = f'<p class="note">{key}</p>' if any('class="box ' in card for card in cards) else ""
    return f'{note}<div class="samples">{"".join(cards)}</div>'


def _sample(sample: Sample) -> str:
    images = [open_picture(picture) for picture in sample.pictures]
    # With several pictures a text does not say which of them its boxes lie on.
    answer, truth = (
        boxes_in(text, images[0].size) if len(images) == 1 else [] for text in (sample.answer, sample.truth)
    )
    pictures = "".join(picture_svg(image, answer=answer, truth=truth) for image in images)
    verdict = {True: '<span class="right">✓ right</span>', False: '<span class="wrong">✗ wrong</span>', None: ""}
    return (
        '<figure class="sample">'
        + (f'<div class="pictures">{pictures}</div>' if pictures else "")
        + f'<p class="question">{escape(sample.question)}</p><p>{escape(sample.answer)}</p>'
        + (f'<p class="truth-line">Truth: {escape(sample.truth)}</p>' if sample.truth else "")
        + f'<p class="verdict">{verdict[sample.right]}<span>{escape(sample.note)}</span></p></figure>'
    )


def _data(view: DataView) -> str:
    numbers = {"rows": view.rows, "images": view.images, "tokens": view.tokens, "targets": view.targets}
    facts = {name: f"{number:,}" for name, number in numbers.items()}
    if view.tokens:
        facts["targets among the tokens"] = f"{view.targets / view.tokens:.1%}"
    chart = histogram_chart(view.lengths, name="lengths of the samples", x_name="tokens of a sample")
    body = figure("Samples by length", chart) + facts_list({**facts, **view.facts})
    return f'<h3>{escape(view.name)}</h3><div class="data">{body}</div>'


def _origin(run: RunView) -> str:
    parts = []
    if run.recipe_yaml:
        parts.append(f"<pre>{escape(run.recipe_yaml)}</pre>")
    if run.facts:
        rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in run.facts.items())
        parts.append(f'<table class="versions"><tbody>{rows}</tbody></table>')
    return f"<details><summary>{escape(run.name)}</summary>{''.join(parts)}</details>" if parts else ""


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """The leaves of nested JSON objects under dotted names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name or "value", value if isinstance(value, str) else json.dumps(value)
