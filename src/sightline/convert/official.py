"""A folder of the official LLaVA (1.5, 1.6, LoRA, or a projector beside its language model) -> a source; and back.

Names, shapes and fields are those of https://github.com/haotian-liu/LLaVA and of the models that it has released.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from sightline.convert.names import OFFICIAL, OFFICIAL_LINEAR, rename, reverse
from sightline.convert.official_config import (
    check_known,
    feature_layer,
    hub_config,
    official_config,
    read_config,
    template_by_name,
    text_config,
)
from sightline.convert.official_tensors import find
from sightline.convert.sentencepiece_file import carry_sentencepiece
from sightline.convert.shards import write_shards
from sightline.convert.source import Source, checked, hub_shapes
from sightline.convert.tensors import Stored
from sightline.convert.tower import plain_processor, tower_tensors, write_tower
from sightline.convert.vocabulary import (
    ours,
    read_tokenizer,
    rows_of_the_base,
    take_out_of_tokenizer,
    with_room,
    without_ours,
)
from sightline.errors import ModelError
from sightline.files import appearing
from sightline.model.assemble import add_tokens
from sightline.model.foreign import open_processor
from sightline.model.llm import rows_for
from sightline.model.load import TEMPLATE_KEY, recognise_template
from sightline.model.next import NEXT, make_processor, tiles_of
from sightline.model.projector import depth_of
from sightline.model.save import write_json, write_tokenizer
from sightline.model.vision import square_processor, tokens_per_image, vision_config
from sightline.prompt.prompter import Prompter, template_named
from sightline.prompt.templates import Template
from sightline.runtime import say

TOWER_FOLDER = "clip-vision-tower"
"""Within the folder of a model. SGLang sees by the word `clip` in its path what it is."""

DROPPED = ("inv_freq", "position_ids")
"""What older versions of transformers kept in files though it follows from the configuration."""


def read(
    path: str | Path,
    *,
    base: str | None = None,
    vision_tower: str | None = None,
    template: str | None = None,
    name: str | None = None,
) -> Source:
    """A folder of LLaVA; raises ModelError where it is not whole, or its parts do not belong together.

    `base` and `vision_tower` are the language model and the tower, where those that the folder names are elsewhere. The
    template is chosen by the folder's name, or its `name` on the hub, as the official programs do, where the tokenizer
    does not tell it.
    """
    folder = Path(path)
    config = read_config(folder)
    text = text_config(config, folder)
    tower = vision_tower or _tower(config, folder)
    vision, own_processor = _vision(folder, tower, feature_layer(config, folder))
    whole = hub_config(config, folder, text, vision)
    found = find(folder, config, base)
    tokenizer = read_tokenizer(found.tokenizer)
    written_in = _template(template, tokenizer, name or folder.resolve(), config)
    add_tokens(tokenizer)
    tiles = tiles_of(whole, tokens_per_image(whole))
    if tiles is None:
        pad = config.get("image_aspect_ratio") == "pad"
        image_processor = square_processor(own_processor, vision.image_size, pad=pad)
    else:
        image_processor = make_processor(own_processor, tiles)
    prompter = Prompter(tokenizer, written_in, image_processor, tokens_per_image(whole), tiles)
    whole.image_token_index, whole.pad_token_id = prompter.image_token_id, prompter.pad_token_id
    whole.text_config.vocab_size = rows_for(len(tokenizer), text.vocab_size)
    tensors = with_room(_hub_tensors(found.tensors, whole, folder), len(tokenizer))
    tensors = _with_tower(tensors, whole, tower)
    parts = {"llm": found.base or str(folder), "vision_tower": tower}
    return checked(Source(folder, found.kind, whole, prompter, tensors, parts))


def write(
    source: Source, out: Path, *, max_shard_size: str, finish: Callable[[Path], None] = lambda folder: None
) -> None:
    """Write the folder, with the vision tower in a folder of its own inside.

    It appears when it is complete, and `finish` is through with it.

    Raises ModelError where the official programs have nothing for such a model.
    """
    check_known(source)
    rows, tower = rows_of_the_base(source), out.resolve() / TOWER_FOLDER
    config = official_config(source, rows, str(tower), _pad(source))
    table = reverse(OFFICIAL_LINEAR if depth_of(source.config) == 1 else OFFICIAL)
    left_out = ["multi_modal_projector.linear_2."] if depth_of(source.config) == 1 else []
    if not config["unfreeze_mm_vision_tower"]:
        left_out.append("vision_tower.")
    tensors = {
        rename(name, table): tensor
        for name, tensor in without_ours(source.tensors, rows).items()
        if not name.startswith(tuple(left_out))
    }
    in_both = [*tensors.values(), *(t for name, t in source.tensors.items() if name.startswith("vision_tower."))]
    with appearing(out, needs=sum(tensor.nbytes for tensor in in_both)) as partial:
        write_shards(tensors, partial, max_shard_size=max_shard_size)
        write_tower(source, partial / TOWER_FOLDER, max_shard_size=max_shard_size)
        write_json(partial / "config.json", config)
        write_json(partial / "preprocessor_config.json", plain_processor(source))
        write_tokenizer(source.prompter, partial, begins=True)
        take_out_of_tokenizer(partial, ours(source.prompter))
        carry_sentencepiece(source, partial)
        GenerationConfig(
            bos_token_id=source.prompter.tokenizer.bos_token_id,
            eos_token_id=list(source.prompter.stop[0]),
            pad_token_id=config["pad_token_id"],
        ).save_pretrained(partial)
        finish(partial)
    say(f"{out / 'config.json'} names {tower} (mm_vision_tower): where you move the folder, change it there")


def _tower(config: dict[str, Any], folder: Path) -> str:
    """Where the vision tower is that a configuration names; beside the weights, where they were moved with it."""
    named = str(config["mm_vision_tower"])
    beside = folder / Path(named).name
    return str(beside) if beside.is_dir() and not Path(named).is_dir() else named


def _vision(folder: Path, tower: str, layer: int) -> tuple[Any, Any]:
    try:
        return vision_config(tower, layer), open_processor(tower)
    except ModelError as error:
        raise ModelError(f"{folder} sees through {tower}: {error}; name another folder with --vision-tower") from error


def _template(named: str | None, tokenizer: Any, place: str | Path, config: dict[str, Any]) -> Template:
    if named is None and TEMPLATE_KEY not in tokenizer.init_kwargs:
        named = template_by_name(place, config.get("_name_or_path"))
    return template_named(named, tokenizer=tokenizer) if named else recognise_template(tokenizer, place)


def _hub_tensors(official: Any, config: Any, folder: Path) -> dict[str, Stored]:
    """By the hub's names; a projector of one layer gets the second one that changes nothing."""
    layers = depth_of(config)
    table = OFFICIAL_LINEAR if layers == 1 else OFFICIAL
    found: dict[str, Stored] = {rename(n, table): t for n, t in official.items() if not n.endswith(DROPPED)}
    if not any(name.startswith("multi_modal_projector.") for name in found):
        raise ModelError(f"{folder} has no projector (model.mm_projector.*) among its weights: they are not a LLaVA's")
    if config.tie_word_embeddings:
        found.pop("language_model.lm_head.weight", None)
    if config.model_type != NEXT:
        found.pop("image_newline", None)
    first = found.get("multi_modal_projector.linear_1.weight")
    if layers == 1 and first is not None:
        width, dtype = first.shape[0], first.dtype
        found |= {
            "multi_modal_projector.linear_2.weight": Stored(
                (width, width), dtype, partial(torch.eye, width, dtype=dtype)
            ),
            "multi_modal_projector.linear_2.bias": Stored((width,), dtype, partial(torch.zeros, width, dtype=dtype)),
        }
    return found


def _with_tower(tensors: dict[str, Stored], config: Any, name: str) -> dict[str, Stored]:
    """With those of the vision tower that the weights of LLaVA leave out, because it was not trained."""
    wanted = {tensor for tensor in hub_shapes(config) if tensor.startswith("vision_tower.")} - tensors.keys()
    if not wanted:
        return tensors
    return tensors | {own: tensor for own, tensor in tower_tensors(name).items() if own in wanted}


def _pad(source: Source) -> int | None:
    """The padding token that stays in the vocabulary, if any does."""
    prompter = source.prompter
    if prompter.tokenizer.pad_token in ours(prompter):
        own: int | None = source.config.text_config.pad_token_id
        return own
    return prompter.pad_token_id
