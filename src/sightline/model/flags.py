"""The flags with which every command names a model -> that model, loaded."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.model.load import VLM


def model_flags(parser: argparse.ArgumentParser) -> None:
    """MODEL, and how it is loaded and asked; named as XTuner's users know them."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a Hugging Face LLaVA folder or hub id, or the folder of a run")
    add("--prompt-template", metavar="NAME", help="instead of the one that the model was saved with")
    add("--stop-words", nargs="+", default=[], metavar="TEXT", help="also end an answer at these texts")
    add("--torch-dtype", choices=("auto", "fp16", "bf16", "fp32"), default="auto", help="default: auto")
    add("--bits", type=int, choices=(4, 8), help="quantise the language model")
    add("--device", default="auto", help="auto, cpu, cuda, mps, npu or xpu")
    add("--llava", "--visual-encoder", dest="parts", help=argparse.SUPPRESS)


def load_model(args: argparse.Namespace) -> VLM:
    """The model that the flags name, on its device."""
    if args.parts is not None:
        raise UserError(
            "--llava and --visual-encoder are for models in several folders; MODEL is one folder that holds the "
            "language model, the vision tower and the projector: convert yours first (sightline convert --help)"
        )
    if "" in args.stop_words:
        raise UserError("--stop-words: an empty text would end every answer before it begins; leave it out")
    from sightline.model.load import load
    from sightline.model.restore import answering, learned_folder

    learned = learned_folder(args.model)
    if learned is not None:
        return answering(learned, args.device, args.torch_dtype, template=args.prompt_template, bits=args.bits)
    return load(args.model, device=args.device, dtype=args.torch_dtype, template=args.prompt_template, bits=args.bits)
