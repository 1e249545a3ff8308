"""`sightline convert`: a checkpoint of a run becomes a model directory that other programs load."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    pth = kinds.add_parser("pth_to_hf", help="a checkpoint of a run -> a model directory")
    pth.add_argument("recipe", help="the recipe of the run: a name or a YAML file")
    pth.add_argument("checkpoint", help="a checkpoint folder, or a run (its newest checkpoint)")
    merge = kinds.add_parser("merge", help="adapters of a run -> a model directory, by the recipe that lies with them")
    merge.add_argument("source", help="a run, its folder `learned`, or a checkpoint")
    for kind in (pth, merge):
        add = kind.add_argument
        add("out", help="the folder to write")
        add("--save-format", choices=["huggingface"], default="huggingface", help="the layout (default: %(default)s)")
        add("--fp32", action="store_true", help="keep 32-bit weights (default: engine.dtype of the recipe)")
        add("--max-shard-size", type=_size, default="5GB", help="of a weights file (default: %(default)s)")
    pth.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value", help="values of the recipe to change")


def run(args: argparse.Namespace) -> None:
    """Convert models between formats."""
    out, options = Path(args.out), {"fp32": args.fp32, "max_shard_size": args.max_shard_size}
    if args.kind == "merge":
        from sightline.convert.checkpoint import merge

        print(merge(Path(args.source), out, **options))
        return
    from sightline.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.cfg_options)
    from sightline.convert.checkpoint import checkpoint_to_hf

    print(checkpoint_to_hf(recipe, Path(args.checkpoint), out, **options))


def _size(text: str) -> str:
    """A type of argparse: a size as huggingface_hub takes it."""
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return text
