"""The commands around data: check, show, stats. What people type -> data sets and, where there is one, a prompter."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import DataError, UserError
from sightline.limits import use
from sightline.recipe import TEMPLATES, BatchRecipe, DataRecipe, ModelRecipe, load_recipe
from sightline.recipes import shipped

if TYPE_CHECKING:
    from sightline.data.checked import Checked
    from sightline.prompt.prompter import Prompter

DATA = (".json", ".jsonl", ".parquet", ".arrow")
"""What the names of data files end in."""

TARGET = "a recipe (name or YAML file), a data file, or a known set (sightline data prepare lists them)"

TOKENS_PER_IMAGE = 576
"""Those of CLIP ViT-L/14 at 336 px, where only a tokenizer is given."""


@dataclass(frozen=True)
class Asked:
    """What a command is to look at."""

    name: str
    entries: tuple[DataRecipe, ...]
    prompter: Prompter | None
    max_length: int | None
    settings: dict[str, str]
    seed: int = 0


def arguments_check(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    parser.add_argument("--html", type=Path, metavar="PAGE.html", help="write the whole report as a page, too")
    parser.add_argument(
        "--decode", action="store_true", help="decode every image whole: finds all damage, and takes 10 times as long"
    )
    parser.add_argument("--sample", type=int, default=12, metavar="N", help="rows to look at on the page (default: 12)")


def run_check(args: argparse.Namespace) -> None:
    """Look at every row and every image of a recipe's data, or of a file, and report what is wrong.

    With a tokenizer - a recipe brings its model's - the lengths are checked too; no weight is loaded. The page that
    --html writes shows every bad row and a sample of good ones with their pictures; beside it, PAGE_findings.jsonl
    lists all findings for programs. The exit code is 2 when a row cannot be used.
    """
    from rich.console import Console

    from sightline.data.check_page import write_check_page
    from sightline.data.check_tables import print_checked
    from sightline.data.checked import complaint, write_findings
    from sightline.runtime import say

    asked = _asked(args)
    findings = None if args.html is None else _findings_beside(args.html, asked)
    checked = _check(asked, sample=args.sample if args.html is not None else 0, decode=args.decode)
    print_checked(checked, Console(highlight=False, emoji=False))
    if findings is not None:
        write_findings(checked.found, findings)
        write_check_page(checked, args.html, findings.name)
        say(f"page: {args.html}, all findings: {findings}")
    if checked.bad:
        raise DataError(complaint(checked))


def arguments_stats(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run_stats(args: argparse.Namespace) -> None:
    """Print the figures of a recipe's data, or of a file: rows, images, tokens, targets, and how they are spread."""
    from rich.console import Console

    from sightline.data.check_tables import print_numbers
    from sightline.data.checked import numbers

    checked = _check(_asked(args), sample=0)
    if args.json:
        print(json.dumps(numbers(checked), indent=2))
    else:
        print_numbers(checked, Console(highlight=False, emoji=False))


def arguments_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RECIPE|FILE", help=TARGET)
    parser.add_argument("row", type=int, metavar="ROW", help="the number of the row, counted from 1")
    parser.add_argument("--set", type=int, default=1, metavar="N", help="which of the recipe's data files (default: 1)")
    _arguments(parser, with_target=False)


def run_show(args: argparse.Namespace) -> None:
    """Print one row through every stage: as it stands in the file, understood, rendered, tokenised, and its images.

    What the model learns to say is green, or between ⟦ and ⟧ where there are no colours. The exit code is 2 when the
    row cannot be used.
    """
    from rich.console import Console

    from sightline.data.index import open_sources
    from sightline.data.show import show
    from sightline.page.numbers import counted

    asked = _asked(args)
    sources = open_sources(asked.entries, asked.prompter, asked.max_length)
    if not 1 <= args.set <= len(sources):
        raise UserError(f"--set {args.set}: {asked.name} has {counted(len(sources), 'data file')}, counted from 1")
    show(sources[args.set - 1], args.row, Console(highlight=False, emoji=False))


def _arguments(parser: argparse.ArgumentParser, with_target: bool = True) -> None:
    if with_target:
        parser.add_argument("target", metavar="RECIPE|FILE", help=TARGET)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe to change")
    parser.add_argument("--images", metavar="FOLDER", help="FILE: the folder that image paths are relative to")
    parser.add_argument("--root", metavar="FOLDER", help="known set: the folder of all data (default: data)")
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="not with RECIPE: a model, or a language model, whose tokens to count"
    )
    parser.add_argument(
        "--template",
        "--prompt-template",
        choices=TEMPLATES,
        metavar="NAME",
        help="the prompt template (default: that of the model)",
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a row with its images (default: 2048, or what MODEL has)"
    )
    parser.add_argument(
        "--tokens-per-image",
        type=int,
        metavar="N",
        help=f"where MODEL is a language model alone (default: {TOKENS_PER_IMAGE})",
    )


def _asked(args: argparse.Namespace) -> Asked:
    from sightline.data.layouts import known_sets

    if _is_data(args.target):
        _refuse(args, "root", "a known set; a file's images have --images")
        return _files(args, DataRecipe(path=args.target, images=args.images))
    if args.target in known_sets():
        _refuse(args, "images", "a data file; a known set brings its own")
        return _files(args, DataRecipe(use=args.target, root=args.root))
    for name in ("images", "root", "tokenizer", "tokens_per_image"):
        _refuse(args, name, "a data file or a known set; a recipe says it itself: change it by key=value")
    return _recipe(args)


def _refuse(args: argparse.Namespace, name: str, what: str) -> None:
    """UserError for a flag that belongs to another sort of target."""
    if getattr(args, name) is not None:
        raise UserError(f"--{name.replace('_', '-')} is for {what}")


def _is_data(target: str) -> bool:
    """Whether it is a data file or a folder of them; otherwise it is a recipe."""
    from sightline.data.mixes import is_mix

    path = Path(target)
    if path.suffix in (".yaml", ".yml") or target in shipped():
        return is_mix(path)
    return path.suffix in DATA or "*" in target or path.exists()


def _recipe(args: argparse.Namespace) -> Asked:
    changes = {"model.template": args.template, "batch.max_length": args.max_length}
    overrides = [f"{key}={value}" for key, value in changes.items() if value is not None]
    recipe = load_recipe(args.target, [*args.overrides, *overrides])
    use(recipe.limits)
    from sightline.model.assemble import check_length, make_prompter

    prompter = make_prompter(recipe.model)
    check_length(recipe.model, recipe.batch.max_length)
    settings = {"tokenizer": str(recipe.model.from_model or recipe.model.llm), "template": recipe.model.template}
    return _with(args.target, recipe.data, prompter, recipe.batch.max_length, settings, recipe.run.seed)


def _files(args: argparse.Namespace, entry: DataRecipe) -> Asked:
    if args.overrides:
        remedy = "flags say how to check it" if "=" in args.overrides[0] else "several files make a recipe's `data`"
        raise UserError(f"{args.overrides[0]}: {args.target} is a data file, not a recipe; {remedy}")
    if args.tokenizer is None:
        for name in ("template", "max_length", "tokens_per_image"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} needs --tokenizer: without one, no tokens are counted")
        return Asked(args.target, (entry,), None, None, {"tokenizer": "none, so lengths and targets are not checked"})
    for name, least in (("max_length", 2), ("tokens_per_image", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least {least}")
    prompter, most = _prompter(args.tokenizer, args.template, args.tokens_per_image)
    usual = BatchRecipe.model_fields["max_length"].default
    limit = min(usual, most or usual) if args.max_length is None else args.max_length
    if most is not None and limit > most:
        raise UserError(f"--max-length {limit}: {args.tokenizer} has positions for {most} tokens only")
    settings = {"tokenizer": args.tokenizer, "template": prompter.template.name}
    return _with(args.target, (entry,), prompter, limit, settings)


def _with(
    name: str, entries: tuple[DataRecipe, ...], prompter: Prompter, limit: int, settings: dict[str, str], seed: int = 0
) -> Asked:
    of_image = str(prompter.tokens_per_image)
    if prompter.tiles is not None:
        of_image += f", and up to {prompter.tiles.most_tokens - prompter.tokens_per_image} of its tiles"
    more = {"max_length": str(limit), "tokens of an image": of_image}
    return Asked(name, entries, prompter, limit, settings | more, seed)


def _prompter(model: str, template: str | None, tokens_per_image: int | None) -> tuple[Prompter, int | None]:
    """That of a whole model, or of a language model alone, and how many positions the model has, if that is known.

    With a language model alone it can count and render, but prepare no pixels.
    """
    from transformers import AddedToken

    from sightline.model.assemble import make_prompter
    from sightline.model.foreign import open_config, open_tokenizer
    from sightline.model.load import positions, recognise_template
    from sightline.model.next import NEXT
    from sightline.model.reading import model_folder
    from sightline.prompt.prompter import Prompter, template_named
    from sightline.types import IMAGE

    folder = model_folder(model)
    if Path(folder).is_file():
        raise UserError(f"--tokenizer {model} is a file; name the folder of a model")
    tokenizer = open_tokenizer(folder)
    only_tokenizer = Path(folder).is_dir() and not Path(folder, "config.json").exists()
    config = None if only_tokenizer else open_config(folder)
    most = None if config is None else positions(config.get_text_config())
    chosen = recognise_template(tokenizer, model) if template is None else template_named(template, tokenizer=tokenizer)
    if config is not None and config.model_type in ("llava", NEXT):
        if tokens_per_image is not None:
            raise UserError(f"--tokens-per-image: {model} is a whole model, which knows it itself")
        spec = ModelRecipe(from_model=model, template=chosen.name, system=chosen.default_system)
        return make_prompter(spec), most
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    features = TOKENS_PER_IMAGE if tokens_per_image is None else tokens_per_image
    return Prompter(tokenizer, chosen, None, features), most


def _findings_beside(page: Path, asked: Asked) -> Path:
    """The name of the list beside a page; UserError where one of the two would not be a file of its own."""
    if page.suffix not in (".html", ".htm"):
        raise UserError(f"--html {page}: the name of a page ends in .html")
    if not page.parent.is_dir():
        raise UserError(f"--html {page}: there is no folder {page.parent}")
    findings = page.with_name(f"{page.stem}_findings.jsonl")
    from sightline.data.checked import refuse_foreign_findings
    from sightline.page.page import refuse_foreign

    if findings.resolve() in [Path(entry.path).resolve() for entry in asked.entries if entry.path is not None]:
        raise UserError(f"--html {page}: {findings} would be overwritten, which is to be checked; name another page")
    refuse_foreign(page)
    refuse_foreign_findings(findings)
    return findings


def _check(asked: Asked, sample: int, decode: bool = False) -> Checked:
    from sightline.data.check import check
    from sightline.runtime import console

    return check(
        asked.entries,
        asked.prompter,
        asked.max_length,
        console,
        title=asked.name,
        settings=asked.settings,
        seed=asked.seed,
        sample=sample,
        decode=decode,
    )
