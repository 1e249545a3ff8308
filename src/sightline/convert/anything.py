"""A path -> what lies there, as a source; a source and the name of a format -> a folder, proven by reading it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sightline.convert import hf
from sightline.convert.hub import located
from sightline.convert.lora import CONFIG as ADAPTER
from sightline.convert.lora import is_adapter
from sightline.convert.source import Source
from sightline.convert.tensors import read_json
from sightline.convert.verify import Proof, compare, write_proof
from sightline.errors import CheckpointError, ModelError, shown
from sightline.model.reading import model_folder
from sightline.model.restore import learned_folder
from sightline.model.weights import STATE, checkpoints

FORMATS = ("huggingface", "official", "xtuner", "gguf")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder that holds only a part of a model was made for, as the user names it."""

    llm: str | None = None
    vision_tower: str | None = None
    template: str | None = None


def read(name: str | Path, parts: Parts = Parts()) -> Source:
    """The model in a folder or on the hub, whatever format it has; ModelError where it is none of those known."""
    path = located(name)
    kind = recognise(path)
    if kind in ("run", "huggingface") and (parts.llm or parts.vision_tower):
        raise ModelError(f"{name} names or has its own parts: leave out --llm and --vision-tower")
    if kind == "run" and parts.template:
        raise ModelError(f"{name} is a run, whose recipe names its template: leave out --prompt-template")
    if kind == "run":
        from sightline.convert.checkpoint import source_of_run

        return source_of_run(path)
    if kind == "huggingface":
        return hf.read(path, template=parts.template)
    if kind == "official":
        from sightline.convert import official

        named = dict(base=parts.llm, vision_tower=parts.vision_tower, template=parts.template)
        return official.read(path, **named, name=str(name) if path != Path(name) else None)
    from sightline.convert import xtuner

    return xtuner.read(path, llm=parts.llm, vision_tower=parts.vision_tower, template=parts.template)


def recognise(path: Path) -> str:
    """What is at a path that exists: `huggingface`, `official`, `xtuner` or `run`; ModelError says what is lacking."""
    if not path.is_dir():
        raise ModelError(f"{path} is a file; a checkpoint (.pth) needs its recipe: sightline convert pth_to_hf")
    if (path / "projector").is_dir():
        return "xtuner"
    if (path / "mm_projector.bin").is_file() or (path / "non_lora_trainables.bin").is_file():
        return "official"
    if learned_folder(path) is not None or (path / STATE).is_file():
        return "run"
    if checkpoints(path) and model_folder(path) == path:
        return "run"
    if is_adapter(path) and not (path / "config.json").is_file():
        base = read_json(path / ADAPTER).get("base_model_name_or_path")
        raise ModelError(
            f"{path} is an adapter of peft{f', made for {shown(base)}' if base else ''}: put it into its model by "
            f"sightline convert merge MODEL {path} OUT"
        )
    config = _config(Path(model_folder(path)))
    if "mm_projector_type" in config or "mm_hidden_size" in config:
        return "official"
    if "text_config" in config and "vision_config" in config:
        return "huggingface"
    raise ModelError(
        f"{path} is a {shown(config.get('model_type', 'nameless'))} model without a projector, not a LLaVA; put one "
        f"together with sightline assemble"
    )


def convert(
    source: Source,
    out: Path,
    to: str,
    *,
    dtype: torch.dtype | None,
    max_shard_size: str,
    verify: bool,
    quantize: str,
    mend_clip: bool = False,
    learned: bool = False,
) -> Proof | None:
    """Write a source in a format, read it back and compare; nothing is left behind when they differ.

    `dtype` is that of the weights (None: the source's), `quantize` the kind of a GGUF's, `mend_clip` goes
    around a defect of llama.cpp, `learned` leaves out of XTuner's folder what has not learned. Returns what was found;
    None with `verify=False`.
    """
    check_new(out)
    given, source = source, source if dtype is None else source.to(dtype)
    proofs: list[Proof] = []

    def prove(folder: Path) -> None:
        """Called before the folder gets its name: so a kill leaves nothing, or a whole one with its proof."""
        try:
            if to == "gguf":
                from sightline.convert import gguf_back

                proof = gguf_back.prove(given, source, folder, quantize=quantize, mend_clip=mend_clip)
            else:
                proof = compare(given, _with_the_rest(folder, source) if learned else _read_back(folder, to))
        except (CheckpointError, ModelError) as error:
            raise type(error)(str(error).replace(str(folder), str(out))) from error
        write_proof(proof, folder)
        proofs.append(proof)

    finish = prove if verify else _nothing
    try:
        _write(source, out, to, max_shard_size, finish, quantize=quantize, mend_clip=mend_clip, learned=learned)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}; choose another folder") from error
    return proofs[0] if proofs else None


def _nothing(folder: Path) -> None:
    """No proof was asked for."""


def _read_back(folder: Path, to: str) -> Source:
    if to != "official":
        return read(folder)
    from sightline.convert.official import TOWER_FOLDER

    # The folder names the place where the tower will be.
    return read(folder, Parts(vision_tower=str(folder / TOWER_FOLDER)))


def _with_the_rest(out: Path, source: Source) -> Source:
    """What was learned, on the parts that the source was learned on."""
    from sightline.convert import xtuner

    here = {part for part, adapter in (source.adapters or {}).items() if adapter is None}
    named = {part: name for part, name in (source.parts or {}).items() if part not in here}
    found = xtuner.read(out, **named, template=source.prompter.template.name)
    return replace(found, prompter=source.prompter)


def _write(
    source: Source,
    out: Path,
    to: str,
    max_shard_size: str,
    finish: Callable[[Path], None],
    *,
    quantize: str,
    mend_clip: bool,
    learned: bool,
) -> None:
    match to:
        case "huggingface":
            hf.write(source, out, max_shard_size=max_shard_size, finish=finish)
        case "official":
            from sightline.convert import official

            official.write(source, out, max_shard_size=max_shard_size, finish=finish)
        case "xtuner":
            from sightline.convert import xtuner

            xtuner.write(source, out, max_shard_size=max_shard_size, learned=learned, finish=finish)
        case "gguf":
            from sightline.convert import gguf

            gguf.write(source, out, quantize=quantize, mend_clip=mend_clip, finish=finish)


def check_new(out: Path) -> None:
    """Now rather than after minutes of loading: raise CheckpointError where `out` is not to be written to."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_symlink() and not out.exists():
            raise CheckpointError(f"{out} is a link to {out.readlink()}, which is not there; name another folder")
        if out.is_file():
            raise CheckpointError(f"{out} is a file; name a folder that is new or empty")
        taken = not out.name or (out.exists() and any(out.iterdir()))
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror}; choose another folder") from error
    if taken:
        raise CheckpointError(f"{out} is there already; name a folder that is new or empty")


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        raise ModelError(
            f"{folder} has no config.json, no projector/ and no mm_projector.bin: it is no model that Sightline knows"
        )
    return read_json(folder / "config.json")
