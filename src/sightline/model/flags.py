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
    add("model", metavar="MODEL", help="a Hugging Face LLaVA, a run or an XTuner folder; with --llava: its LLM")
    add("--llava", metavar="DIR", help="XTuner's folder or hub id: a projector, and what else was trained")
    add("--visual-encoder", metavar="NAME", help="the vision tower, where --llava holds none")
    add("--visual-select-layer", type=int, metavar="N", help="of the vision tower, with --llava (default: -2)")
    add("--adapter", metavar="DIR", help="a LoRA of the language model, as peft writes it")
    add("--prompt-template", metavar="NAME", help="instead of the one that the model was saved with")
    add("--stop-words", nargs="+", default=[], metavar="TEXT", help="also end an answer at these texts")
    add("--torch-dtype", choices=("auto", "fp16", "bf16", "fp32"), default="auto", help="default: auto")
    add("--bits", type=int, choices=(4, 8), help="quantise the language model")
    add("--device", default="auto", help="auto, cpu, cuda, mps, npu or xpu")


def load_model(args: argparse.Namespace) -> VLM:
    """The model that the flags name, on its device."""
    if "" in args.stop_words:
        raise UserError("--stop-words: an empty text would end every answer before it begins; leave it out")
    from sightline.model.load import load
    from sightline.model.parts import find_parts, is_in_parts, put_together, with_adapter
    from sightline.model.restore import answering, learned_folder

    how = {"template": args.prompt_template, "bits": args.bits}
    if args.llava or is_in_parts(args.model):
        llm = {"llm": args.model} if args.llava else {}
        layer = {"vision_tower": args.visual_encoder, "layer": args.visual_select_layer}
        parts = find_parts(args.llava or args.model, **llm, **layer, adapter=args.adapter)
        return put_together(parts, device=args.device, dtype=args.torch_dtype, **how)
    for flag in ("visual_encoder", "visual_select_layer"):
        if getattr(args, flag) is not None:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} goes with --llava DIR; {args.model} is loaded with the vision tower it has")
    learned = learned_folder(args.model)
    if learned is not None and args.adapter:
        raise UserError(f"--adapter is for whole models; make one of {args.model} first: sightline convert merge")
    if learned is not None:
        return answering(learned, args.device, args.torch_dtype, **how)
    vlm = load(args.model, device=args.device, dtype=args.torch_dtype, **how)
    return with_adapter(vlm, args.adapter, bits=args.bits) if args.adapter else vlm
