"""The flags that all commands of evaluation share -> a loaded model, and what is written down about it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError
from sightline.runtime import seed_everything

if TYPE_CHECKING:
    from sightline.model.load import VLM


def model_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """The flags, named as XTuner's users know them."""
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="where results go (default: work_dirs/<its name>)")
    parser.add_argument("--prompt-template", metavar="NAME", help="instead of the one that the model was saved with")
    parser.add_argument("--stop-words", nargs="+", default=[], metavar="TEXT", help="also end an answer at these texts")
    parser.add_argument("--torch-dtype", choices=("auto", "fp16", "bf16", "fp32"), default="auto")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantise the language model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, npu or xpu")
    parser.add_argument("--max-new-tokens", type=positive, default=max_new_tokens, metavar="N")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="answers are greedy, so they should not depend on it")
    parser.add_argument("--llava", "--visual-encoder", dest="parts", type=Path, help=argparse.SUPPRESS)


def load_model(args: argparse.Namespace) -> VLM:
    """The model that the flags name, on its device."""
    if args.parts is not None:
        raise UserError(
            "--llava and --visual-encoder are for models in several folders; MODEL is one folder that holds the "
            "language model, the vision tower and the projector: convert yours first (sightline convert --help)"
        )
    from sightline.model.load import load

    seed_everything(args.seed)
    return load(args.model, device=args.device, dtype=args.torch_dtype, template=args.prompt_template, bits=args.bits)


def model_settings(args: argparse.Namespace) -> dict[str, object]:
    """What answers depend on besides the questions; not the batch size, so that a run out of memory can go on."""
    return {
        "model_name_or_path": str(args.model),
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
