"""Hugging Face's LLaVA directories, in any layout of names that transformers has had -> a source; and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from sightline.convert.hub import located
from sightline.convert.shards import write_shards
from sightline.convert.source import Source, checked
from sightline.convert.tensors import in_folder
from sightline.errors import ModelError
from sightline.files import appearing
from sightline.model.load import load_prompter
from sightline.model.next import NEXT
from sightline.model.reading import model_folder
from sightline.model.save import hub_config, write_json, write_processor

LAYOUTS = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector|image_newline)", r"\1"),
    (r"^vision_tower\.(embeddings|pre_layrnorm|encoder|post_layernorm|head)\b", r"vision_tower.vision_model.\1"),
)
"""What transformers 4.52 and later write -> the hub's names, which older ones wrote and all read."""


COMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Tensors that older versions wrote, and all versions compute."""


def read(path: str | Path, *, template: str | None = None) -> Source:
    """A directory of transformers, here or on the hub, or the model of a run; ModelError where it is not whole."""
    folder = Path(model_folder(located(path)))
    config, prompter = load_prompter(folder, template)
    if config.image_token_index != prompter.image_token_id:
        raise ModelError(
            f"{folder}: <image> is {config.image_token_index} in config.json (image_token_index) and "
            f"{prompter.image_token_id} in the tokenizer: one of them is of another model"
        )
    tensors = {hub_name(name, config): tensor for name, tensor in in_folder(folder).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COMPUTED)}
    if config.tie_word_embeddings:
        tensors.pop("language_model.lm_head.weight", None)
    kind = "a Hugging Face LLaVA-NeXT" if config.model_type == NEXT else "a Hugging Face LLaVA"
    return checked(Source(folder, kind, config, prompter, tensors))


def hub_name(name: str, config: Any) -> str:
    """A name of any of transformers' layouts in the hub's."""
    dino = config.vision_config.model_type.startswith("dinov2")
    for pattern, new in LAYOUTS[:-1] if dino else LAYOUTS:
        name = re.sub(pattern, new, name)
    return name


def write(
    source: Source, out: Path, *, max_shard_size: str, finish: Callable[[Path], None] = lambda folder: None
) -> None:
    """Write the directory; it appears when it is complete, and `finish` is through with it."""
    with appearing(out, needs=sum(tensor.nbytes for tensor in source.tensors.values())) as partial:
        write_shards(source.tensors, partial, max_shard_size=max_shard_size)
        write_json(partial / "config.json", hub_config(source.config.to_dict(), source.dtype))
        write_generation_config(source, partial)
        write_processor(source.prompter, source.config, partial)
        finish(partial)


def write_generation_config(source: Source, folder: Path) -> None:
    """The tokens that begin, end and fill; the language model's own may sample, and transformers refuses some."""
    GenerationConfig(
        bos_token_id=source.prompter.tokenizer.bos_token_id,
        eos_token_id=list(source.prompter.stop[0]),
        pad_token_id=source.prompter.pad_token_id,
    ).save_pretrained(folder)
