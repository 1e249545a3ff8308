"""A vision-language model -> a Hugging Face directory in the hub layout, with every file that other programs read.

transformers 5 by itself writes names that no other program knows (`vision_tower.embeddings.*`), nests the image
processor and leaves out `special_tokens_map.json`; so the files are written here, in the form of the llava-hf models.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import GenerationConfig

from sightline.files import appearing
from sightline.model.load import PLACE_KEY, SYSTEM_KEY, TEMPLATE_KEY, VLM
from sightline.model.next import NEXT
from sightline.model.projector import DEPTH_KEY, depth_of, exported_act, exported_state
from sightline.model.tokenizer_json import begin_with, plain_merges
from sightline.model.tokenizer_model import FILE, find_tokenizer_model
from sightline.model.vision import leading_tokens
from sightline.prompt.prompter import Prompter
from sightline.prompt.render import to_jinja, to_text
from sightline.prompt.templates import BOS
from sightline.types import IMAGE, ask

HUB_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
)
"""Prefixes in memory (transformers 5) and in the files of the hub."""


def save(
    vlm: VLM,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    replace: bool = False,
) -> Path:
    """Write the model with its tokenizer, processor and chat template; the folder appears when it is complete.

    `dtype` is that of the floating-point weights (None: as they are in memory). `replace`: what is there is ours and
    goes. Raises CheckpointError when the disk is full, and when something is in the way.
    """
    state = hub_state(vlm.model.state_dict(), vlm.model.config, dtype=dtype)
    with appearing(Path(folder), needs=size_of(state), replace=replace) as partial:
        _write_weights(state, partial, max_shard_size)
        kept = dtype or next(iter(state.values())).dtype
        write_json(partial / "config.json", hub_config(vlm.model.config.to_dict(), kept))
        # Not the language model's own: it may sample, and transformers refuses to write some (Vicuna's).
        GenerationConfig(
            bos_token_id=vlm.prompter.tokenizer.bos_token_id,
            eos_token_id=list(vlm.prompter.stop[0]),
            pad_token_id=vlm.prompter.pad_token_id,
        ).save_pretrained(partial)
        write_processor(vlm.prompter, vlm.model.config, partial)
    return Path(folder)


def hub_state(
    state: dict[str, torch.Tensor], config: Any, *, dtype: torch.dtype | None = None, moved: bool = True
) -> dict[str, torch.Tensor]:
    """Rename tensors from memory to the hub's names; a tied head is left out, it is the embedding.

    `moved`: onto the CPU, as they are written; else they stay where and as they are.
    """
    result = {}
    for name, tensor in exported_state(state, depth_of(config)).items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        if moved:
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            tensor = tensor.detach().to("cpu", wanted).contiguous()
        result[hub_name(name, config)] = tensor
    return result


def hub_name(name: str, config: Any) -> str:
    """A name in memory -> the one in the files of the hub."""
    old, new = next(pair for pair in HUB_NAMES if name.startswith(pair[0]))
    if old == "model.vision_tower." and config.vision_config.model_type.startswith("dinov2"):
        new = "vision_tower."
    return new + name.removeprefix(old)


def hub_config(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """config.json with both spellings of what transformers 5 renamed: dtype and the rope fields."""
    name = str(dtype).removeprefix("torch.")
    kind = "LlavaNextForConditionalGeneration" if config["model_type"] == NEXT else "LlavaForConditionalGeneration"
    config = {**config, "architectures": [kind], "dtype": name, "torch_dtype": name}
    config["projector_hidden_act"] = exported_act(config["projector_hidden_act"], config.get(DEPTH_KEY) or 2)
    config.pop("_name_or_path", None)
    for part in ("text_config", "vision_config"):
        section = dict(config[part])
        section.pop("_name_or_path", None)
        rope = dict(section.get("rope_parameters") or {})
        if "rope_type" in rope:  # else none, or one for each kind of layer, which has no old spelling
            section |= {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
            if rope["rope_type"] != "default":
                section["rope_scaling"] = rope
        config[part] = {**section, "dtype": name, "torch_dtype": name}
    return config


def write_processor(prompter: Prompter, config: Any, folder: Path) -> None:
    """Tokenizer, image processor and chat template, in the files that old and new programs look for."""
    kind = "LlavaProcessor" if prompter.tiles is None else "LlavaNextProcessor"
    write_tokenizer(prompter, folder, begins=False, processor_class=kind)
    image = {**prompter.image_processor.to_dict(), "processor_class": kind}
    write_json(folder / "preprocessor_config.json", image)
    processor = {
        "processor_class": kind,
        "image_token": IMAGE,
        "patch_size": config.vision_config.patch_size,
        # A class token is counted here, and dropped again by the strategy "default".
        "num_additional_image_tokens": leading_tokens(config.vision_config),
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    write_json(folder / "processor_config.json", processor)


def write_tokenizer(prompter: Prompter, folder: Path, *, begins: bool, **settings: str) -> None:
    """The tokenizer and the chat template alone; `settings` are written beside the tokenizer's own.

    The tokenizer puts the token before a text that a prompt begins with, and the chat template leaves it out, as with
    the llava-hf models: a rendered prompt and one that was written by hand begin once. Where that would give other ids,
    the chat template writes it and the tokenizer adds nothing. `begins`: both do, as with language models by
    themselves, whose rendered prompts are tokenised without.
    """
    tokenizer = prompter.tokenizer
    bos, template = tokenizer.bos_token or "", prompter.template
    if begins:
        adds = bool(bos) and template.begin.replace(BOS, bos).startswith(bos)
    elif adds := _can_be_begun(prompter):
        template = dataclasses.replace(template, begin=template.begin.removeprefix(BOS))
    jinja = to_jinja(template, bos=bos, eos=tokenizer.eos_token or "")
    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(folder)
    if (fast := folder / "tokenizer.json").is_file():
        content = json.loads(fast.read_text(encoding="utf-8"))
        plain_merges(content)
        begin_with(content, *(bos, tokenizer.bos_token_id) if adds else (None, None))
        write_json(fast, content)
    if (found := find_tokenizer_model(tokenizer)) is not None:
        shutil.copyfile(found, folder / FILE)
    (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    write_json(folder / "chat_template.json", {"chat_template": jinja})
    written = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for here in ("backend", "is_local", "local_files_only"):
        written.pop(here, None)  # how it was loaded, which is nobody else's
    # The name that transformers 4 knows; 5 reads it as well.
    written |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # By default this class also makes token_type_ids, which no Llama takes.
        "model_input_names": ["input_ids", "attention_mask"],
        "add_bos_token": adds,
        "add_eos_token": False,
        "chat_template": jinja,
        TEMPLATE_KEY: prompter.template.name,
        SYSTEM_KEY: prompter.template.default_system,
        PLACE_KEY: prompter.template.image_place,
    }
    if isinstance(written.get("extra_special_tokens"), list):
        # As transformers 4 calls a list of them; it takes the new name for a mapping, and stops.
        written["additional_special_tokens"] = written.pop("extra_special_tokens")
    write_json(folder / "tokenizer_config.json", written | settings)
    special = {key: str(token) for key, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    write_json(folder / "special_tokens_map.json", special)


def _can_be_begun(prompter: Prompter) -> bool:
    """Whether prompts begin with a token that the tokenizer can as well put there: with the same ids behind it.

    A tokenizer that puts a space before the first word of a text alone (`prepend_scheme: first`) sees another word
    first then. A chat template of the tokenizer's own stays as it is.
    """
    tokenizer, bos = prompter.tokenizer, prompter.tokenizer.bos_token
    if not bos or not prompter.template.begin.startswith(BOS):
        return False
    prompt = to_text(prompter.render([ask("a")]))
    whole, behind = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt[len(bos) :]))
    return bool(whole == [tokenizer.bos_token_id, *behind])


def size_of(state: dict[str, torch.Tensor]) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _write_weights(state: dict[str, torch.Tensor], folder: Path, max_shard_size: str) -> None:
    shards = split_torch_state_dict_into_shards(state, max_shard_size=max_shard_size)
    for file, names in shards.filename_to_tensors.items():
        save_file({name: state[name] for name in names}, folder / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write what people may read too: indented, in their own letters."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value.to_dict()
