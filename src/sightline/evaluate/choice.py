"""A model and a multiple-choice TSV (MMBench, CCBench) -> its answers as a spreadsheet, and the circular score."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import DataError
from sightline.evaluate.choice_rows import CIRCLE, BadRow, Choice, read_choices, refuse
from sightline.evaluate.command import model_arguments, model_settings, work_dir_of
from sightline.evaluate.letters import option_letter
from sightline.evaluate.run import answer, fingerprint_of, start_folder, unaskable
from sightline.evaluate.save import save_json, save_xlsx, score_json, show
from sightline.evaluate.task import Question, Score, Share
from sightline.model.flags import load_model
from sightline.runtime import say, seed_everything
from sightline.types import ImageRef, ask

if TYPE_CHECKING:
    from sightline.model.load import VLM

# Names of the categories as MMBench and CCBench print them.
SHORT_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
    "sketch_reasoning": "Sketch Reasoning",
    "scenery_building": "Scenery & Building",
    "food_clothes": "Food & Clothes",
    "historical_figure": "Historical Figure",
    "traditional_show": "Traditional Show",
    "calligraphy_painting": "Calligraphy Painting",
    "cultural_relic": "Cultural Relic",
}
INSTRUCTION = "Answer with the option's letter from the given choices directly."
INSTRUCTION_ZH = "请直接回答选项字母。"
RESULT_XLSX, RESULT_JSON, BAD_ROWS = "mmbench_result.xlsx", "mmbench_result.json", "bad_rows.json"


def to_question(row: Choice) -> Question:
    """The prompt that LLaVA's models are trained on: hint, question, options, then what to answer with."""
    hint = f"{row.hint}\n" if row.hint else ""
    options = "".join(f"{letter}. {text}\n" for letter, text in row.options.items())
    text = f"{hint}{row.question}\n{options}"
    instruction = INSTRUCTION_ZH if any("\u4e00" <= char <= "\u9fff" for char in text) else INSTRUCTION
    message = ask(text + instruction, [ImageRef(row.image)])
    return Question(str(row.index), (message,), row.answer)


def score_choices(rows: Sequence[Choice], predictions: Sequence[str]) -> Score:
    """The circular score: a question counts as right only if all rows of its circle (index modulo 10^6) are right.

    A file without circles scores each row. The table has a line per `l2-category`, or per `category` where that is
    the column the file has. Raises DataError where a row has no answer to compare with.
    """
    circles: dict[int, list[tuple[Choice, str | None]]] = {}
    for row, prediction in sorted(zip(rows, predictions, strict=True), key=lambda pair: pair[0].index):
        if row.answer is None:
            raise DataError(f"row {row.number} has no answer to compare with")
        circles.setdefault(row.index % CIRCLE, []).append((row, option_letter(prediction, row.options)))

    hits: list[bool] = []
    by_category: dict[str, list[bool]] = {}
    for circle in circles.values():
        first = circle[0][0]
        hits.append(all(letter == row.answer for row, letter in circle))
        category = first.category if first.l2_category is None else first.l2_category
        if category is not None:
            by_category.setdefault(SHORT_NAMES.get(category, category) or "(none)", []).append(hits[-1])
    letters = [(row, letter) for circle in circles.values() for row, letter in circle]
    return Score(
        name="circular" if len(circles) < len(rows) else "accuracy",
        overall=Share(sum(hits), len(hits)),
        table={name: Share(sum(right), len(right)) for name, right in sorted(by_category.items())},
        parsed=Share(sum(letter is not None for _, letter in letters), len(letters)).value,
        # The rows of a circle repeat one question, so only the circles count as independent.
        vanilla=Share(sum(letter == row.answer for row, letter in letters), len(letters), independent=len(circles)),
    )


def evaluate_choices(
    vlm: VLM,
    data_path: str | Path,
    work_dir: str | Path,
    *,
    model_name: str,
    batch_size: int = 16,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
) -> Score:
    """Ask all questions of a TSV that has answers, write the results below `work_dir` and score them."""
    rows, bad = read_choices(data_path)
    refuse(data_path, bad)
    _, bad = fitting(vlm, rows, max_new_tokens)
    refuse(data_path, bad)
    if rows[0].answer is None:
        raise DataError(f"{data_path} has no answers to score with; `sightline mmbench` writes it for submission")
    settings = {
        "model_name_or_path": model_name,
        "data_path": str(data_path),
        "stop_words": list(stop),
        "max_new_tokens": max_new_tokens,
    }
    folder, predictions = answer_choices(
        vlm, rows, work_dir, settings, batch_size=batch_size, max_new_tokens=max_new_tokens, stop=stop
    )
    score = score_choices(rows, predictions)
    save_results(folder, rows, predictions, score)
    return score


def fitting(vlm: VLM, rows: Sequence[Choice], max_new_tokens: int) -> tuple[list[Choice], list[BadRow]]:
    """The rows that a model can be asked, and those that it cannot."""
    reasons = unaskable(vlm, [to_question(row) for row in rows], max_new_tokens=max_new_tokens)
    good = [row for number, row in enumerate(rows) if number not in reasons]
    return good, [BadRow(rows[number].number, reason) for number, reason in reasons.items()]


def answer_choices(
    vlm: VLM,
    rows: Sequence[Choice],
    work_dir: str | Path,
    settings: Mapping[str, object],
    *,
    batch_size: int,
    max_new_tokens: int,
    stop: Sequence[str],
) -> tuple[Path, list[str]]:
    """The folder of the run, and what the model says to each row."""
    questions = [to_question(row) for row in rows]
    same = fingerprint_of(vlm, questions, settings)
    more = {"batch_size": batch_size, "device": str(vlm.device)}
    folder = start_folder(work_dir, {**settings, **more}, same, last_file=RESULT_XLSX)
    say(f"{len(rows)} rows of {settings['data_path']}; results go to {folder}")
    answers = answer(vlm, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, stop=stop, folder=folder)
    return folder, answers


def save_results(
    folder: Path, rows: Sequence[Choice], predictions: Sequence[str], score: Score | None, *, left_out: int = 0
) -> None:
    """Write `mmbench_result.json` (where there is a score) and, last, `mmbench_result.xlsx`."""
    if score is not None:
        result = score_json(score)
        result["details"] |= {
            "score": score.name,
            "vanilla": score.vanilla.value if score.vanilla else None,
            "rows": len(rows),
            "rows_left_out": left_out,
            "parsed": score.parsed,
        }
        save_json(folder / RESULT_JSON, result)
    columns, table = _spreadsheet(rows, predictions)
    save_xlsx(folder / RESULT_XLSX, columns, table)


def _spreadsheet(rows: Sequence[Choice], predictions: Sequence[str]) -> tuple[list[str], list[list[str | int]]]:
    """The columns that MMBench's server and XTuner's users expect, and the cells below them."""
    letters = sorted({letter for row in rows for letter in row.options})
    categories = [
        name
        for name, value in (("category", rows[0].category), ("l2-category", rows[0].l2_category))
        if value is not None
    ]
    columns = ["question", *letters, "prediction", *categories, "index", "split", "answer"]
    table: list[list[str | int]] = []
    for row, prediction in zip(rows, predictions, strict=True):
        cells: dict[str, str | int | None] = {
            "question": row.question,
            **row.options,
            "prediction": prediction,
            "category": row.category,
            "l2-category": row.l2_category,
            "index": row.index,
            "split": row.split,
            "answer": row.answer,
        }
        table.append([value if (value := cells.get(name)) is not None else "" for name in columns])
    return columns, table


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", required=True, type=Path, metavar="TSV", help="such as MMBench_DEV_EN.tsv")
    parser.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help=f"leave rows out that cannot be used, and list them in {BAD_ROWS}",
    )
    model_arguments(parser, max_new_tokens=100)


def run(args: argparse.Namespace) -> None:
    """Answer a multiple-choice TSV (MMBench, CCBench) and score it with the circular rule.

    Writes args.json, answers.jsonl, mmbench_result.xlsx and, where the file has answers, mmbench_result.json into a new
    folder DIR/<time>. A run that was cut off goes on where it stopped when it is started again.
    """
    rows, bad = read_choices(args.data_path)
    if not args.skip_bad_rows or not rows:
        refuse(args.data_path, bad)
    seed_everything(args.seed)
    vlm = load_model(args)
    rows, unfit = fitting(vlm, rows, args.max_new_tokens)
    bad = sorted([*bad, *unfit], key=lambda row: row.number)
    if not args.skip_bad_rows or not rows:
        refuse(args.data_path, bad)
    if bad:
        rows_are = "1 row cannot be used and is" if len(bad) == 1 else f"{len(bad)} rows cannot be used and are"
        say(f"{rows_are} left out; {BAD_ROWS} will name them")
    settings = {**model_settings(args), "data_path": str(args.data_path)}
    budget = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens}
    folder, predictions = answer_choices(vlm, rows, work_dir_of(args), settings, **budget, stop=args.stop_words)
    if bad:
        save_json(folder / BAD_ROWS, [{"row": row.number, "reason": row.reason} for row in bad])
    score = score_choices(rows, predictions) if rows[0].answer is not None else None
    save_results(folder, rows, predictions, score, left_out=len(bad))
    if score is None:
        print(f"All done! The file has no answers: {folder / RESULT_XLSX} is for submission to MMBench's server.")
        return
    show(score, f"MMBench ({args.data_path})")
    print(f"{score.parsed:.1%} of {len(rows)} answers name an option; the others count as wrong. Results: {folder}")
