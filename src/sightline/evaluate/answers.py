"""A model and a LLaVA JSON file -> how many of its assistant turns the model answers word for word."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import DataError
from sightline.evaluate.command import model_arguments, model_settings, positive, work_dir_of
from sightline.evaluate.run import answer, fingerprint_of, start_folder, unaskable
from sightline.evaluate.save import save_json, score_json, show
from sightline.evaluate.task import Answered, Question, Score, Share
from sightline.model.flags import load_model
from sightline.runtime import say, seed_everything
from sightline.types import IMAGE, ImageRef, Message

if TYPE_CHECKING:
    from sightline.model.load import VLM

RESULT_JSON = "answers_result.json"
GREY = (127, 127, 127)
Sizes = dict[ImageRef, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One question, for a report."""

    id: str
    category: str
    images: tuple[ImageRef, ...]
    """What the model saw, in order: grey pictures where these were asked for."""
    question: str
    answer: str
    truth: str
    right: bool


@dataclass(frozen=True, slots=True)
class AnswersResult:
    """The share of exact answers, and each of them."""

    score: Score
    answers: tuple[AnswerRow, ...]


def read_questions(
    data_path: str | Path, image_folder: str | Path | None, *, blank_images: bool = False, limit: int | None = None
) -> list[Question]:
    """Every assistant turn as a question, after the true answers of the turns before it; at most the first `limit`.

    The rows and images of these questions are checked. Raises DataError naming the file and the row.
    """
    questions: list[Question] = []
    for question in _questions(data_path, image_folder, blank_images):
        if limit is not None and len(questions) == limit:
            break
        questions.append(question)
    if not questions:
        raise DataError(f"{data_path}: no questions to ask")
    return questions


def score_answers(answered: Sequence[Answered]) -> Score:
    """Exact matches, in all and by category."""
    by_category: dict[str, list[bool]] = {}
    for each in answered:
        by_category.setdefault(each.question.category, []).append(each.right)
    return Score(
        name="exact",
        overall=Share(sum(each.right for each in answered), len(answered)),
        table={name: Share(sum(right), len(right)) for name, right in sorted(by_category.items())},
    )


def evaluate_answers(
    vlm: VLM,
    data_path: str | Path,
    image_folder: str | Path | None,
    *,
    blank_images: bool = False,
    limit: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
) -> AnswersResult:
    """Ask a model the questions of a file; nothing is written."""
    questions = read_questions(data_path, image_folder, blank_images=blank_images, limit=limit)
    _check(vlm, questions, max_new_tokens)
    texts = answer(vlm, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, stop=stop)
    return to_result(questions, texts)


def to_result(questions: Sequence[Question], texts: Sequence[str]) -> AnswersResult:
    """Questions with their answers -> score and report."""
    answered = [Answered(question, text) for question, text in zip(questions, texts, strict=True)]
    return AnswersResult(score_answers(answered), tuple(map(_to_row, answered)))


def _check(vlm: VLM, questions: Sequence[Question], max_new_tokens: int) -> None:
    if reasons := unaskable(vlm, questions, max_new_tokens=max_new_tokens):
        number = min(reasons)
        raise DataError(f"{questions[number].origin}: {reasons[number]}")


def _questions(data_path: str | Path, image_folder: str | Path | None, blank_images: bool) -> Iterator[Question]:
    from sightline.data.formats import to_conversation
    from sightline.data.sources import open_rows
    from sightline.prompt.images import check_image

    rows = open_rows(data_path)
    sizes: Sizes = {}
    greys: dict[tuple[int, int], ImageRef] = {}
    for number in range(len(rows)):
        row = rows[number]
        origin = rows.origin(number)
        category = row.get("category")
        conversation = to_conversation(row, origin, image_folder)
        for image in conversation.images:
            if image not in sizes:
                try:
                    sizes[image] = check_image(image)
                except DataError as error:
                    raise DataError(f"{origin}: {error}") from error
            if blank_images and sizes[image] not in greys:
                greys[sizes[image]] = _grey(sizes[image])
        messages = conversation.messages
        if blank_images:
            messages = tuple(_greyed(message, sizes, greys) for message in messages)
        for at, message in enumerate(messages):
            if message.role == "assistant":
                turn = sum(before.role == "assistant" for before in messages[: at + 1])
                yield Question(
                    id=f"{conversation.id or f'row {number + 1}'}/{turn}",
                    messages=messages[:at],
                    truth=message.text,
                    category="all" if category is None else str(category),
                    origin=origin,
                )


def _greyed(message: Message, sizes: Sizes, greys: Mapping[tuple[int, int], ImageRef]) -> Message:
    parts = tuple(greys[sizes[part]] if isinstance(part, ImageRef) else part for part in message.content)
    return replace(message, content=parts)


def _grey(size: tuple[int, int]) -> ImageRef:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, GREY).save(file, "PNG")
    return ImageRef(file.getvalue())


def _to_row(answered: Answered) -> AnswerRow:
    question = answered.question
    asked: Message = question.messages[-1]
    return AnswerRow(
        id=question.id,
        category=question.category,
        images=tuple(image for message in question.messages for image in message.images),
        question=asked.text.replace(IMAGE, "").strip(),
        answer=answered.answer.strip(),
        truth=(question.truth or "").strip(),
        right=answered.right,
    )


def _to_json(result: AnswersResult) -> dict[str, object]:
    rows = [
        {
            "id": row.id,
            "category": row.category,
            "question": row.question,
            "answer": row.answer,
            "truth": row.truth,
            "right": row.right,
            "images": [image.source for image in row.images if isinstance(image.source, str)],
        }
        for row in result.answers
    ]
    return {**score_json(result.score), "answers": rows}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-path",
        required=True,
        type=Path,
        metavar="FILE",
        help="questions with answers, in any form of training data",
    )
    parser.add_argument("--image-folder", type=Path, metavar="DIR", help="where the images of the file are")
    parser.add_argument(
        "--blank-images",
        action="store_true",
        help="show a grey picture of the same size instead of each image: how much can be guessed?",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="ask the first N questions only")
    model_arguments(parser, max_new_tokens=64)


def run(args: argparse.Namespace) -> None:
    """Ask every question of a LLaVA JSON file and count the answers that are word for word right.

    An optional field `category` of a row names its line in the table. Writes args.json, answers.jsonl and
    answers_result.json into a new folder DIR/<time>. A run that was cut off goes on where it stopped when it is
    started again.
    """
    questions = read_questions(args.data_path, args.image_folder, blank_images=args.blank_images, limit=args.limit)
    seed_everything(args.seed)
    vlm = load_model(args)
    _check(vlm, questions, args.max_new_tokens)
    settings = {
        **model_settings(args),
        "data_path": str(args.data_path),
        "image_folder": str(args.image_folder or ""),
        "blank_images": args.blank_images,
        "limit": args.limit,
    }
    same = fingerprint_of(vlm, questions, settings)
    more = {"batch_size": args.batch_size, "device": str(vlm.device)}
    folder = start_folder(work_dir_of(args), settings | more, same, last_file=RESULT_JSON)
    say(f"{len(questions)} questions of {args.data_path}; results go to {folder}")
    budget = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens}
    texts = answer(vlm, questions, **budget, stop=args.stop_words, folder=folder)
    result = to_result(questions, texts)
    save_json(folder / RESULT_JSON, _to_json(result))
    show(result.score, f"Exact answers ({args.data_path}{', grey pictures' if args.blank_images else ''})")
    print(f"Results: {folder}")
