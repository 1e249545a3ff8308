"""`sightline convert`: a model in one format becomes one in another; XTuner's pth_to_hf and merge are kinds of it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError, shown

if TYPE_CHECKING:
    import torch

    from sightline.convert.source import Source
    from sightline.convert.verify import Proof

USAGE = """sightline convert [-h] IN OUT --to FORMAT
       sightline convert pth_to_hf RECIPE CHECKPOINT OUT [--save-format FORMAT]
       sightline convert merge RUN OUT [--save-format FORMAT]
       sightline convert merge LLM ADAPTER OUT [--is-clip]"""

FORMATS = ("huggingface", "official", "xtuner", "gguf")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    add = parser.add_argument
    add("words", nargs="+", metavar="PATH", help="what is converted, and the folder to write, as shown above")
    add("--to", "--save-format", dest="to", choices=FORMATS, help="default: huggingface")
    add("--llm", metavar="NAME", help="the language model, where IN holds only adapters or a projector")
    add("--vision-tower", "--visual-encoder", metavar="NAME", help="the vision tower, where IN has none")
    add("--prompt-template", metavar="NAME", help="the template, where IN does not tell it")
    dtype = parser.add_mutually_exclusive_group().add_argument
    dtype("--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights (default: as they are)")
    dtype("--fp32", action="store_const", dest="dtype", const="float32", help="the same as --dtype float32")
    add("--quantize", choices=("f32", "f16", "bf16", "q8_0"), help="of a GGUF (default: f16)")
    add("--mend-clip", action="store_true", help="of a GGUF: around llama.cpp's defect with CLIP (docs/deploy-gguf.md)")
    add("--learned", action="store_true", help="xtuner, of a run's learned/: only what learned, adapters for peft")
    add("--max-shard-size", type=_size, default="5GB", help="of a weights file (default: %(default)s)")
    add("--safe-serialization", action="store_true", help="XTuner's; weights are always written as safetensors")
    add("--no-verify", dest="verify", action="store_false", help="do not compare logits afterwards")
    add("--is-clip", action="store_true", help="merge: the adapter is a vision tower's")
    add("--device", default="cpu", help="XTuner's; conversion needs no accelerator")
    add("--cfg-options", nargs="+", default=[], metavar="key=value", help="pth_to_hf: values of the recipe to change")


def run(args: argparse.Namespace) -> None:
    """Convert a model between formats.

    Finds out what IN is: a run, a Hugging Face directory, an official LLaVA (also LoRA, also mm_projector.bin), an
    XTuner folder. Tokenizer, image processor, chat template and generation config come along. Afterwards the result is
    read back, and its logits for a picture and a question are compared with those of IN.
    """
    _check_flags(args)
    match args.words:
        case ["pth_to_hf", recipe, checkpoint, out]:
            _checkpoint(args, recipe, Path(checkpoint), Path(out))
        case ["merge", source, out]:
            _convert(args, Path(source), Path(out))
        case ["merge", base, adapter, out]:
            _merge(args, base, Path(adapter), Path(out))
        case ["pth_to_hf" | "merge", *_]:
            raise UserError(f"{args.words[0]}: wrong number of paths; {_usage()}")
        case [source, out]:
            _convert(args, Path(source), Path(out))
        case _:
            raise UserError(f"name what is converted and the folder to write; {_usage()}")


def _usage() -> str:
    return "usage: " + "; ".join(line.strip() for line in USAGE.splitlines())


def _check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for a flag that would do nothing to what is asked."""
    kind = args.words[0]
    adapter = kind == "merge" and len(args.words) == 4
    to = args.to or "huggingface"
    if args.learned and (adapter or to != "xtuner"):
        raise UserError(f"--learned is for --to xtuner: {to} has no place for adapters; leave it out to merge them")
    superfluous = {
        "--quantize is for --to gguf": args.quantize and (adapter or to != "gguf"),
        "--mend-clip is for --to gguf": args.mend_clip and (adapter or to != "gguf"),
        "--is-clip is for convert merge CLIP ADAPTER OUT": args.is_clip and not adapter,
        "--cfg-options is for convert pth_to_hf, whose recipe it changes": args.cfg_options and kind != "pth_to_hf",
        "--to: merge LLM ADAPTER OUT writes a model of the same kind as LLM": args.to and adapter,
        "--llm, --vision-tower and --prompt-template: the recipe names them (--cfg-options changes it)": (
            kind == "pth_to_hf" and (args.llm or args.vision_tower or args.prompt_template)
        ),
        "--llm, --vision-tower and --prompt-template are for parts of a LLaVA, and this merges one adapter": (
            adapter and (args.llm or args.vision_tower or args.prompt_template)
        ),
    }
    for reason, is_so in superfluous.items():
        if is_so:
            raise UserError(f"{reason}; leave it out")


def _convert(args: argparse.Namespace, path: Path, out: Path) -> None:
    from sightline.convert.anything import Parts, check_new, read
    from sightline.runtime import say

    check_new(out)
    source = read(path, Parts(args.llm, args.vision_tower, args.prompt_template))
    say(f"{path} is {source.kind}: {len(source.tensors)} tensors, {source.nbytes / 1e9:.2f} GB")
    _write(args, source, out)


def _checkpoint(args: argparse.Namespace, recipe: str, checkpoint: Path, out: Path) -> None:
    from sightline.recipe import load_recipe

    loaded = load_recipe(recipe, args.cfg_options)
    from sightline.convert.anything import check_new
    from sightline.convert.checkpoint import source_of

    check_new(out)
    _write(args, source_of(loaded, checkpoint, fp32=args.dtype == "float32"), out)


def _write(args: argparse.Namespace, source: Source, out: Path) -> None:
    from sightline.convert.anything import convert
    from sightline.runtime import say

    proof = convert(
        source,
        out,
        args.to or "huggingface",
        dtype=_dtype(args.dtype),
        max_shard_size=args.max_shard_size,
        verify=args.verify,
        quantize=args.quantize or "f16",
        mend_clip=args.mend_clip,
        learned=args.learned,
    )
    if proof is not None:
        say(_told(proof))
    print(out)


def _merge(args: argparse.Namespace, base: str, adapter: Path, out: Path) -> None:
    from sightline.convert.anything import check_new
    from sightline.convert.merge import merge
    from sightline.runtime import say

    check_new(out)
    difference = merge(
        base,
        adapter,
        out,
        is_clip=args.is_clip,
        dtype=_dtype(args.dtype),
        max_shard_size=args.max_shard_size,
        verify=args.verify,
    )
    if difference is not None:
        say(f"merged and unmerged: outputs differ by at most {difference:.2g}")
    print(out)


def _told(proof: Proof) -> str:
    return (
        f"read back: logits of a picture and a question differ by at most {proof.largest_difference:.2g} (their "
        f"standard deviation is {proof.spread:.2g})"
    )


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found


def _size(text: str) -> str:
    """A type of argparse: a size as huggingface_hub takes it."""
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no size such as 500MB or 5GB")
    return text
