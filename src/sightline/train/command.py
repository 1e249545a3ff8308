"""`sightline train`: a recipe by name or path, with overrides, becomes a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sightline.data.layouts import check_names
from sightline.files import write_whole
from sightline.recipe import Recipe, dump_recipe, load_recipe
from sightline.runtime import say, wanted_processes, world_size
from sightline.train.folder import claimed
from sightline.train.launch import launched


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's name (sightline list-cfg) or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change, such as optim.lr=1e-4")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="key=value", help="the same, as XTuner writes it"
    )
    parser.add_argument(
        "--work-dir", help="the run's folder (default: work_dirs/<recipe>, with --tiny work_dirs/tiny/<recipe>)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="go on from a checkpoint; without a path from the newest of the work dir",
    )
    parser.add_argument(
        "--deepspeed",
        metavar="NAME",
        help="XTuner's; accepted, but nothing is sharded yet: each device holds the whole model, and losses are equal",
    )
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), help="XTuner's; torchrun is recognised")
    parser.add_argument("--seed", type=int, help="short for run.seed=...")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="try the recipe in seconds: 3 steps of small random models of the same families on made-up rows",
    )


def run(args: argparse.Namespace) -> None:
    """Train a model: stage 1, stage 2, or any recipe of yours.

    With NPROC_PER_NODE=8 in the environment it starts 8 processes, one for each device (NNODES, NODE_RANK, ADDR and
    PORT for several machines); `torchrun -m sightline train ...` does the same. The losses do not depend on it.
    """
    overrides = [*args.overrides, *args.cfg_options]
    if args.seed is not None:
        overrides.append(f"run.seed={args.seed}")
    if args.resume is not None and "=" in args.resume and not Path(args.resume).exists():
        # `--resume key=value`: argparse takes the override for the path.
        overrides.append(args.resume)
        args.resume = "auto"
    recipe = load_recipe(args.recipe, overrides)
    check_names(recipe.data)
    work_dir = Path(args.work_dir or Path("work_dirs", "tiny" if args.tiny else "", Path(args.recipe).stem))
    if world_size() == 1 and (wanted := wanted_processes()) is not None and wanted.node == 0:
        with claimed(work_dir) as folder:  # here one line says what is in the way; of several processes each says more
            if args.resume is None and not args.tiny:
                folder.begin(recipe, None)
    if (code := launched(sys.argv[1:])) is not None:
        sys.exit(code)
    if args.deepspeed:
        say(
            f"--deepspeed {args.deepspeed}: models are not sharded yet, each device holds a whole one; losses are equal"
        )
    from sightline.train.loop import train_in

    with claimed(work_dir) as folder:
        if args.tiny:
            recipe = _small(recipe, work_dir / "stand-ins")
        train_in(folder, recipe, resume=args.resume)


def _small(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe on stand-ins, which one process of each machine makes and the others find."""
    from sightline.model.tiny import tiny
    from sightline.runtime import first_of_node, pick_device, rank_0_first
    from sightline.train.engine import meet

    meet(pick_device(recipe.engine.device))
    made = folder / "recipe.yaml"

    def make() -> Recipe:
        if not first_of_node():
            return load_recipe(str(made))
        small = tiny(recipe, folder)
        write_whole(made, dump_recipe(small), replace=True)
        return small

    return rank_0_first(make)
