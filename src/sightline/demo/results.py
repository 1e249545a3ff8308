"""What the demo measured -> a table, the report, and whether it is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from sightline.evaluate.answers import AnswerRow, AnswersResult
from sightline.evaluate.task import Score, Share
from sightline.runtime import console
from sightline.train.report import Sample, ScoreRow, read_run, write_report
from sightline.train.report import Score as Cell

COLUMNS = ("after stage 1", "after stage 2", "grey pictures")


@dataclass(frozen=True, slots=True)
class Demands:
    """What a demo must reach, or something is broken; shares of right answers."""

    heldout: float
    seeing: float
    """By how much real pictures must beat grey ones."""
    before: float
    """At most so much of the questions after the captioning stage."""
    circles: float
    """Of the multiple-choice questions, right in every order of their options."""


# The aim of the full demo is 0.95, and 0.90 of the circles. These are floors: when a small model begins to look things
# up is a matter of luck.
FULL = Demands(heldout=0.90, seeing=0.50, before=0.15, circles=0.60)
QUICK = Demands(heldout=0.35, seeing=0.08, before=0.15, circles=0.0)


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything that is measured."""

    before: AnswersResult
    after: AnswersResult
    grey: AnswersResult
    choice_before: Score
    choice: Score


def show(scores: Scores) -> None:
    """Print the table."""
    table = Table(title="What the model knows", title_style="bold")
    table.add_column(overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, shares in _lines(scores).items():
        cells = ["" if share is None else f"{share.value:.1%}" for share in shares]
        part = name in scores.after.score.table
        table.add_row(f"  {name}" if part else name, *cells, style="dim" if part else "")
    console.print(table)


def report(folder: Path, scores: Scores, minutes: float) -> Path:
    """Write the page about both stages; returns its path."""
    rows = [
        ScoreRow(
            name,
            {
                column: Cell(share.value, share.half_width, share.total)
                for column, share in zip(COLUMNS, shares, strict=True)
                if share is not None
            },
        )
        for name, shares in _lines(scores).items()
    ]
    facts = {
        "held-out answers": f"{scores.after.score.value:.1%}",
        "multiple choice": f"{scores.choice.value:.1%}",
        "without seeing": f"{scores.grey.score.value:.1%}",
        "the whole way": f"{minutes:.1f} min",
    }
    return write_report(
        folder / "report.html",
        title="Sightline demo",
        runs=[read_run(folder / "pretrain"), read_run(folder / "finetune")],
        samples=_samples(scores.after.answers),
        scores=rows,
        facts=facts,
    )


def demand(scores: Scores, demands: Demands) -> None:
    """Raise when the model has not learned what it should: then something is broken."""
    after, grey, before = scores.after.score.value, scores.grey.score.value, scores.before.score.value
    found = {
        f"held-out answers >= {demands.heldout:.0%}": after >= demands.heldout,
        f"held-out answers >= those on grey pictures + {demands.seeing:.0%}": after >= grey + demands.seeing,
        f"circles of multiple choice >= {demands.circles:.0%}": scores.choice.value >= demands.circles,
        f"held-out answers after stage 1 <= {demands.before:.0%}": before <= demands.before,
    }
    missed = [demand for demand, met in found.items() if not met]
    if missed:
        raise RuntimeError(f"the demo did not reach: {'; '.join(missed)}")


def _lines(scores: Scores) -> dict[str, tuple[Share, Share, Share | None]]:
    """Name -> shares in the order of COLUMNS: all answers, each kind of question, the circles."""
    before, after, grey = scores.before.score, scores.after.score, scores.grey.score
    return {
        "held-out answers, exact": (before.overall, after.overall, grey.overall),
        **{name: (before.table[name], share, grey.table[name]) for name, share in after.table.items()},
        "multiple choice, circular": (scores.choice_before.overall, scores.choice.overall, None),
    }


def _samples(answers: Sequence[AnswerRow]) -> list[Sample]:
    """A few answers to look at, right ones first."""
    right = [row for row in answers if row.right]
    wrong = [row for row in answers if not row.right]
    chosen = [*_evenly(right, 14), *_evenly(wrong, 4)]
    return [Sample(row.images, row.question, row.answer, row.truth, row.right, row.category) for row in chosen]


def _evenly(answers: Sequence[AnswerRow], number: int) -> list[AnswerRow]:
    """At most so many, from beginning to end, because the answers come kind after kind."""
    number = min(number, len(answers))
    return [answers[at * len(answers) // number] for at in range(number)]
