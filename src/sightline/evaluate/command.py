"""The flags that all commands of evaluation share, and what is written down about them."""

from __future__ import annotations

import argparse
from pathlib import Path

from sightline.model.flags import model_flags


def model_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """The model, how it is asked, and where the results go."""
    model_flags(parser)
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="where results go (default: work_dirs/<its name>)")
    parser.add_argument("--max-new-tokens", type=positive, default=max_new_tokens, metavar="N")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="answers are greedy, so they should not depend on it")


def model_settings(args: argparse.Namespace) -> dict[str, object]:
    """What answers depend on besides the questions; not the batch size, so that a run out of memory can go on."""
    return {
        "model_name_or_path": str(args.model),
        "llava": args.llava,
        "visual_encoder": args.visual_encoder,
        "visual_select_layer": args.visual_select_layer,
        "adapter": args.adapter,
        "prompt_template": args.prompt_template,
        "stop_words": args.stop_words,
        "torch_dtype": args.torch_dtype,
        "bits": args.bits,
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
    }


def work_dir_of(args: argparse.Namespace) -> Path:
    """The folder below which the results of all runs on one data file go."""
    return args.work_dir or Path("work_dirs", args.data_path.stem)


def positive(text: str) -> int:
    """A type of argparse: a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number
