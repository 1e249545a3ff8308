"""The commands `assemble` and `llamafy`: models by their names -> a model folder, without training."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from sightline.errors import CheckpointError, ModelError, shown
from sightline.recipe import TEMPLATES, ModelRecipe


def arguments_assemble(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--llm", required=True, type=_name, metavar="MODEL", help="the language model: a folder or a hub id")
    add("--vision-tower", required=True, type=_name, metavar="MODEL", help="the vision model (CLIP, SigLIP, DINOv2)")
    add("--out", required=True, type=Path, metavar="FOLDER", help="the folder to write")
    add("--projector-from", metavar="PLACE", help="a run, a model folder, a .pth or .bin file (default: a new one)")
    add("--projector-depth", type=int, choices=range(1, 5), default=2, help="its layers (default: %(default)s)")
    add("--template", choices=TEMPLATES, metavar="NAME", default="vicuna", help="the prompt template (%(default)s)")
    add("--vision-feature-layer", type=int, default=-2, metavar="N", help="whose output is seen (default: %(default)s)")
    add("--image-aspect-ratio", choices=["pad", "crop"], default="pad", help="how pictures get square (%(default)s)")
    add("--next", action="store_true", help="make a LLaVA-NeXT, which sees pictures in tiles")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="number format (default: the language model's)")
    add("--seed", type=int, default=42, help="of a new projector (default: %(default)s)")


def run_assemble(args: argparse.Namespace) -> None:
    """Put a language model and a vision tower together to one model folder, without training.

    Other programs load the folder as a LLaVA. Without --projector-from the projector is random: such a model speaks,
    but sees nothing before it is trained.
    """
    _check_free(args.out)
    import torch

    from sightline.model.assemble import assemble, make_prompter
    from sightline.model.save import save
    from sightline.runtime import say, seed_everything

    names = ("llm", "vision_tower", "projector_from", "projector_depth", "template", "vision_feature_layer")
    spec = ModelRecipe(
        **{name: getattr(args, name) for name in (*names, "image_aspect_ratio", "next")},
    )
    prompter = make_prompter(spec)
    seed_everything(args.seed)
    vlm = assemble(spec, prompter)
    dtype = getattr(torch, args.dtype) if args.dtype else vlm.model.get_input_embeddings().weight.dtype
    parts = [*vlm.model.model.named_children(), ("in all", vlm.model)]
    for name, part in parts:
        say(f"{name}: {type(part).__name__}, {sum(p.numel() for p in part.parameters()):,} parameters")
    say(f"tokens of a picture: {prompter.tokens_per_image}{' for each tile' if prompter.tiles else ''}")
    print(_written(lambda: save(vlm, args.out, dtype=dtype), args.out))


def arguments_llamafy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="InternLM, InternLM2 or Phi-3: a folder or a hub id")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--max-shard-size", type=_bytes, default="5GB", metavar="SIZE", help="default: %(default)s")


def run_llamafy(args: argparse.Namespace) -> None:
    """Write an InternLM, InternLM2 or Phi-3 as the same model in the form of a Llama.

    No code of the model's author is run. At no time more than one file of --max-shard-size is in memory.
    """
    _check_free(args.out)
    import json

    from sightline.model.llamafy import llamafy, window_note
    from sightline.model.llm import fetched
    from sightline.model.reading import reading
    from sightline.runtime import say

    with reading(args.source):
        source = fetched(args.source, weights=True)
    folder = _written(lambda: llamafy(source, args.out, max_shard_size=args.max_shard_size), args.out)
    if note := window_note(json.loads((source / "config.json").read_text(encoding="utf-8"))):
        say(note)
    print(folder)


def _check_free(out: Path) -> None:
    """Now rather than after minutes of loading."""
    if out.is_symlink() and not out.exists():
        raise ModelError(f"{out} is a link to {out.readlink()}, which is not there; name another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is there already; name a folder that is new or empty")
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise CheckpointError(f"cannot write {out}: {above} is no folder that you may write to; choose another folder")


def _written(write: Callable[[], Path], out: Path) -> Path:
    try:
        return write()
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}; choose another folder") from error


def _name(text: str) -> str:
    """A type of argparse: a folder or a hub id."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def _bytes(text: str) -> int:
    """A type of argparse: a size as 500MB or 5GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT])B", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no size such as 500MB or 5GB")
    return int(float(match[1]) * 1000 ** ("KMGT".index(match[2].upper()) + 1))
