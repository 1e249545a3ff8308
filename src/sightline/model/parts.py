"""XTuner's layout, a language model beside a folder of projector, vision tower and adapters -> one model, in memory.

    LLM/ (or in DIR itself)      DIR/projector      DIR/visual_encoder      DIR/llm_adapter, DIR/visual_encoder_adapter

What DIR lacks was not trained: the language model and the vision tower are then named beside it.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from pydantic import ValidationError

from sightline.errors import ModelError, shown
from sightline.model.adapter_files import merge_folder
from sightline.model.assemble import assemble, make_prompter
from sightline.model.llm import llm_config, llm_tokenizer, made_of
from sightline.model.load import TEMPLATE_KEY, VLM, recognise_template
from sightline.model.quantize import bitsandbytes
from sightline.model.reading import reading
from sightline.model.tune import quantize, settle
from sightline.prompt.prompter import Prompter, template_named
from sightline.recipe import ModelRecipe, TuneRecipe
from sightline.runtime import pick_device, pick_dtype, say

PROJECTOR, TOWER, LLM_ADAPTER, TOWER_ADAPTER = "projector", "visual_encoder", "llm_adapter", "visual_encoder_adapter"
"""Folders in XTuner's."""

NOTES = "xtuner_config.py"
"""The configuration of the training, which XTuner copies into what it exports; it is looked at, never run."""

LONGEST_NOTES = 1 << 20
"""Bytes; XTuner's have some ten thousand, and each becomes a hundred in memory."""

UNPARSED = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
"""What Python's parser ends in with what is none of its language, or nested without end."""

LAYER_KEY, ASPECT_KEY = "visual_select_layer", "image_aspect_ratio"
"""Where the projector's config.json of an export of ours notes what XTuner's users give on the command line."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a model lie, and how they were trained."""

    folder: Path
    llm: str
    vision_tower: str
    llm_adapter: Path | None
    tower_adapter: Path | None
    layer: int
    """Of the vision tower, whose output the projector sees."""
    depth: int
    """Layers of the projector."""
    aspect: str
    """`pad` or `crop`, as in a recipe."""
    template: str | None
    """The name of the prompt template, where XTuner's configuration lies with it."""

    @property
    def projector(self) -> Path:
        return self.folder / PROJECTOR


def is_in_parts(path: str | Path) -> bool:
    """Whether a folder is of XTuner's layout."""
    return (Path(path) / PROJECTOR).is_dir()


def find_parts(
    llava: str | Path,
    *,
    llm: str | None = None,
    vision_tower: str | None = None,
    adapter: str | None = None,
    layer: int | None = None,
) -> Parts:
    """Find the parts in a folder or hub id of XTuner's layout, with those that are named beside it.

    Raises ModelError where one is missing, or named although it is there.
    """
    folder = _fetched(llava)
    if not is_in_parts(folder):
        raise ModelError(f"{llava} has no {PROJECTOR}/, so it is no LLaVA of XTuner's; see sightline convert --help")
    settings, noted = _projector_settings(folder / PROJECTOR), _notes(folder)
    own_tower, own_adapter = _there(folder / TOWER), _there(folder / LLM_ADAPTER)
    if own_tower and vision_tower:
        raise ModelError(f"{llava} has a {TOWER}/ of its own: leave out --visual-encoder")
    if own_adapter and adapter:
        raise ModelError(f"{llava} has a {LLM_ADAPTER}/ of its own: leave out --adapter")
    if not llm:
        llm = str(folder) if (folder / "config.json").is_file() else _noted(folder, noted, "llm_name_or_path", "llm")
    tower = own_tower or vision_tower or _noted(folder, noted, "visual_encoder_name_or_path", "visual-encoder")
    return Parts(
        folder,
        llm,
        str(tower),
        llm_adapter=_fetched(adapter) if adapter else own_adapter,
        tower_adapter=_there(folder / TOWER_ADAPTER),
        layer=settings.get(LAYER_KEY) or noted.get("visual_select_layer") or -2 if layer is None else layer,
        depth=settings.get("depth") or 2,
        aspect=settings.get(ASPECT_KEY) or "pad",
        template=noted.get("prompt_template"),
    )


def describe(parts: Parts, template: str | None = None) -> tuple[ModelRecipe, Prompter]:
    """The parts as the model's section of a recipe, and their prompter.

    The template is the one named, or else the one noted by us or in XTuner's configuration, or the tokenizer's own.
    """
    try:
        spec = ModelRecipe(
            llm=parts.llm,
            vision_tower=parts.vision_tower,
            template="plain",
            projector_from=str(parts.projector),
            projector_depth=parts.depth,
            vision_feature_layer=parts.layer,
            image_aspect_ratio="crop" if parts.aspect == "crop" else "pad",
        )
    except ValidationError as error:
        odd = error.errors()[0]
        raise ModelError(
            f"{parts.folder} says {'.'.join(map(str, odd['loc']))} {shown(odd['input'])}: {odd['msg'].lower()}; copy "
            f"its {PROJECTOR}/config.json and {NOTES} again"
        ) from None
    llm_config(parts.llm)
    tokenizer = llm_tokenizer(parts.llm)
    of_xtuner = TEMPLATE_KEY not in tokenizer.init_kwargs
    template = template or (parts.template if of_xtuner else None)
    if template is None:
        written_in = recognise_template(tokenizer, parts.llm)
    else:
        # XTuner trains without a system prompt, also where its template has one.
        written_in = template_named(template, "" if of_xtuner else None, tokenizer=tokenizer)
    return spec, replace(make_prompter(spec), template=written_in)


def put_together(
    parts: Parts, *, device: str = "auto", dtype: str = "auto", template: str | None = None, bits: int | None = None
) -> VLM:
    """Load the parts, merge the adapters and put all on the device; with `bits`, the language model in 4."""
    where = pick_device(device)
    if bits == 8:
        raise ModelError("--bits 8 is for whole models; make one first (sightline convert --help), or use --bits 4")
    if bits is not None:
        bitsandbytes(f"--bits {bits}", where)
    chosen = pick_dtype(dtype, where)
    spec, prompter = describe(parts, template)
    vlm = assemble(spec, prompter)
    if parts.llm_adapter is not None:
        merge_folder(vlm.model, parts.llm_adapter, _llm_name, made_of(parts.llm))
    if parts.tower_adapter is not None:
        merge_folder(vlm.model, parts.tower_adapter, _tower_name)
    vlm.model.eval().requires_grad_(False)
    settle(vlm.model, chosen)
    if bits is not None:
        quantize(vlm.model, TuneRecipe(llm="frozen", llm_bits=4), device=where, dtype=chosen)
    vlm.model.to(where)
    return vlm


def with_adapter(vlm: VLM, adapter: str, *, bits: int | None) -> VLM:
    """A whole model with an adapter of it, or of its language model alone, in its weights.

    Raises ModelError where those are of few bits, or the adapter is of another model.
    """
    if bits is not None:
        raise ModelError(f"--adapter and --bits {bits}: an adapter is added to whole weights; leave one of them out")
    merge_folder(vlm.model, _fetched(adapter), whole_name)
    return vlm


WHOLE_NAMES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
"""How adapters of a whole LLaVA begin names: those of transformers 4, and 5's as they are in memory."""


def whole_name(name: str) -> str:
    """A name in an adapter of a whole LLaVA, or of its language model alone -> the one in memory."""
    for old, new in WHOLE_NAMES:
        inner = name.removeprefix("model.")
        if inner.startswith(old):
            return new + inner.removeprefix(old)
    return name if name.startswith("model.language_model.") else _llm_name(name)


def _llm_name(name: str) -> str:
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _tower_name(name: str) -> str:
    return f"model.vision_tower.{name.removeprefix('vision_model.')}"


def _there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _fetched(llava: str | Path) -> Path:
    """The folder, fetched from the hub where it is a name there."""
    if Path(llava).is_dir():
        return Path(llava)
    with reading(llava):
        return Path(
            snapshot_download(str(llava), allow_patterns=["*.json", "*.safetensors", "*.bin", "*.model", NOTES])
        )


def _noted(folder: Path, noted: dict[str, Any], key: str, flag: str) -> str:
    """A part that is named in XTuner's configuration."""
    if key not in noted:
        part = "language model" if flag == "llm" else "vision tower"
        raise ModelError(f"{folder} holds no {part}: name the one that it was trained with (--{flag} FOLDER_OR_HUB_ID)")
    say(f"{folder / NOTES} names {noted[key]} as {key}, which is loaded")
    return str(noted[key])


def _projector_settings(folder: Path) -> dict[str, Any]:
    """Its config.json; raises ModelError for an activation that no other program would compute."""
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        act = settings.get("hidden_act", "gelu")
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json; copy it again") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder / 'config.json'} is damaged ({error}); copy it again") from error
    if act != "gelu":
        raise ModelError(f"{folder}: a projector with {shown(act)} between its layers; LLaVA's has gelu")
    return settings


def _notes(folder: Path) -> dict[str, Any]:
    """The plain values of XTuner's configuration by their names; a template is `PROMPT_TEMPLATE.its_name` there."""
    try:
        if (folder / NOTES).stat().st_size > LONGEST_NOTES:
            return {}
        tree = ast.parse((folder / NOTES).read_text(encoding="utf-8"))
    except (OSError, *UNPARSED):
        return {}
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        name = node.arg if isinstance(node, ast.keyword) else None
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        if name is None or not isinstance(node, ast.keyword | ast.Assign):
            continue
        if isinstance(node.value, ast.Attribute) and name == "prompt_template":
            found[name] = node.value.attr
        elif isinstance(value := _plain(node.value), str | int):
            found.setdefault(name, str(value).rpartition(".")[2] if name == "prompt_template" else value)
    return found


def _plain(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except UNPARSED:
        return None
