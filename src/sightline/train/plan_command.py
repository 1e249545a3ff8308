"""`sightline plan`: what a run will need - parameters, memory, time - before anything is fetched or loaded."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from sightline.errors import UserError
from sightline.limits import use
from sightline.recipe import load_recipe

MFU = 0.4
"""The share of its peak that a device is assumed to reach, in the operations that training needs."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's name (sightline list-cfg) or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change, such as tune.llm=lora")
    parser.add_argument(
        "--gpu", help="h100, a100-80g, a100-40g, 4090, ... or a size such as 20gb (default: what is here, else h100)"
    )
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="how many of them, each with a copy (default: 1)"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=MFU,
        help=f"share of the device's peak that is reached (default: {MFU}, an assumption, not a measurement)",
    )
    parser.add_argument("--data", action="store_true", help="read the data for their real lengths")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of an epoch, where the data are not known")
    parser.add_argument("--tokens", type=int, metavar="N", help="mean tokens of a row, image tokens included")
    parser.add_argument("--targets", type=int, metavar="N", help="mean targets of a row")
    parser.add_argument("--images", type=int, metavar="N", help="images of a row")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    """Tell parameters, memory and time of a recipe before anything is fetched or loaded.

    Only configurations are needed; those of the models of the shipped recipes come with Sightline.
    """
    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu:g}: a share of the peak, above 0 and at most 1")
    for name in ("gpus", "rows", "tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: at least 1")
    for name in ("targets", "images"):
        if getattr(args, name) is not None and getattr(args, name) < 0:
            raise UserError(f"--{name} {getattr(args, name)}: not below 0")
    recipe = load_recipe(args.recipe, args.overrides)
    use(recipe.limits)
    from sightline.model.estimate_fit import gpu_named
    from sightline.train.forecast import forecast, gpu_here
    from sightline.train.plan_page import show
    from sightline.train.plan_rows import guess_rows, read_rows, told

    gpu = gpu_here() if args.gpu is None else gpu_named(args.gpu)
    rows = told(
        read_rows(recipe) if args.data else guess_rows(recipe), args.rows, args.tokens, args.targets, args.images
    )
    made = forecast(recipe, rows, gpu, count=args.gpus, mfu=args.mfu)
    if args.json:
        print(json.dumps({"recipe": args.recipe} | asdict(made) | {"total_gib": made.memory.total / 2**30}, indent=2))
    else:
        show(args.recipe, made)
