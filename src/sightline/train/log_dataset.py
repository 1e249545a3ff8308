"""`sightline log-dataset`: rows of a recipe's data files become text in which one sees what the model learns to say."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sightline.errors import shown
from sightline.limits import use
from sightline.prompt.paint import GREEN, folded, marks_for, printable_paint
from sightline.recipe import load_recipe
from sightline.terminal import printable

if TYPE_CHECKING:
    from sightline.data.inspect import Source
    from sightline.types import Conversation, Encoded


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's name (sightline list-cfg) or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="values to change, such as model.template=plain"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="key=value", help="the same, as XTuner writes it"
    )
    parser.add_argument("-n", type=int, default=3, help="conversations of each data file (default: 3)")
    parser.add_argument(
        "--show",
        choices=("text", "masked_text", "input_ids", "labels", "all"),
        default="text",
        help="the whole text with its targets marked (default), the targets alone, or numbers",
    )


def run(args: argparse.Namespace) -> None:
    """Print conversations as the model will see them.

    What it learns to say is green, or between ⟦ and ⟧ where there are no colours; the tokens of images are folded.
    """
    recipe = load_recipe(args.recipe, [*args.overrides, *args.cfg_options])
    use(recipe.limits)
    from rich.console import Console
    from rich.text import Text

    from sightline.data.index import open_sources
    from sightline.model.assemble import check_length, make_prompter

    prompter = make_prompter(recipe.model)
    check_length(recipe.model, recipe.batch.max_length)
    console = Console(highlight=False, soft_wrap=True)
    marks = marks_for(console)
    for source in open_sources(recipe.data, prompter, recipe.batch.max_length):
        for conversation, encoded in _first(source, args.n):
            facts = f"{len(encoded.ids)} tokens, {encoded.num_targets} targets, {len(encoded.images)} images"
            title = printable(f"{conversation.origin} (id {shown(conversation.id)}): {facts}")
            console.print(Text(title, style="bold"))
            explained = printable_paint(prompter.explain(encoded, marks=marks))
            if args.show in ("text", "all"):
                console.print(explained)
            if args.show in ("masked_text", "all"):
                for span in explained.spans:
                    if span.style == GREEN:
                        console.print(explained[span.start : span.end])
            if args.show in ("input_ids", "all"):
                console.print(f"input_ids: {folded(encoded.ids)}", markup=False)
            if args.show in ("labels", "all"):
                console.print(f"labels: {folded(encoded.labels)}", markup=False)
            console.print()


def _first(source: Source, count: int) -> Iterator[tuple[Conversation, Encoded]]:
    """The first usable conversations of a file; a row that would stop a run stops here too."""
    from sightline.data.inspect import look
    from sightline.errors import DataError

    for row in range(source.looked_at):
        if count <= 0:
            return
        why = next((finding for finding in look(source, row).findings if finding.bad), None)
        if why is None:
            yield source.conversation(row), source.encode(row)
            count -= 1
        elif source.on_bad_row == "stop":
            raise DataError(f"{source.rows.origin(row)}: {why.reason}", why.kind)
