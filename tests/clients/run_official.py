"""Stands for the official LLaVA, which no registry has: its loading rules, written down anew on transformers 4.37.2.

The class of the language model with a projector in it, the tower that config.json names (or the one in the weights,
where it was trained), the slow tokenizer, pictures padded to a square, a prompt cut at `<image>`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)


class Tower(torch.nn.Module):
    def __init__(self, named: str) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(CLIPVisionConfig.from_pretrained(named))


class LlavaLlamaForCausalLM(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        inner, outer = config.mm_hidden_size, config.hidden_size
        assert config.mm_projector_type == "mlp2x_gelu"
        layers = torch.nn.Linear(inner, outer), torch.nn.GELU(), torch.nn.Linear(outer, outer)
        self.model.mm_projector = torch.nn.Sequential(*layers)
        if config.unfreeze_mm_vision_tower:
            self.model.vision_tower = Tower(config.mm_vision_tower)
        if "unpad" in getattr(config, "mm_patch_merge_type", "flat"):
            self.model.image_newline = torch.nn.Parameter(torch.empty(outer))


def squared(image: Image.Image, mean: list[float]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def encoded(prompt: str) -> list[list[int]]:
    """Each piece by itself; the token that begins a text stays in the first one alone."""
    pieces = [tokenizer(piece).input_ids for piece in prompt.split("<image>")]
    return [
        piece[1:] if number and piece[:1] == [tokenizer.bos_token_id] else piece for number, piece in enumerate(pieces)
    ]


asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
folder = asked["folder"]
torch.set_num_threads(1)
assert "llava" in Path(folder).name.lower()  # by which the official programs tell what it is
tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=False)
config = LlamaConfig.from_pretrained(folder)
model, report = LlavaLlamaForCausalLM.from_pretrained(
    folder, config=config, torch_dtype=torch.float32, output_loading_info=True
)
rows = model.get_input_embeddings().weight.shape[0]
tower = getattr(model.model, "vision_tower", None)
tower = tower.vision_tower if tower is not None else CLIPVisionModel.from_pretrained(config.mm_vision_tower)
processor = CLIPImageProcessor.from_pretrained(config.mm_vision_tower)
assert config.mm_vision_select_feature == "patch"
assert config.image_aspect_ratio == "pad" or not asked["pictures"]  # tiles are not written down anew here

found = {}
with torch.no_grad():
    for picture in asked["pictures"]:
        square = squared(Image.open(picture).convert("RGB"), processor.image_mean)
        pixels = processor.preprocess(square, return_tensors="pt")["pixel_values"]
        seen = tower.eval()(pixels, output_hidden_states=True).hidden_states[config.mm_vision_select_layer][0, 1:]
        before, after = encoded(asked["prompt"])
        embed = model.get_input_embeddings()
        parts = [embed(torch.tensor(before)), model.model.mm_projector(seen), embed(torch.tensor(after))]
        whole = torch.cat(parts)[None]
        logits = model.eval()(inputs_embeds=whole).logits[0]
        answer, state = [], logits
        while len(answer) < 20 and (token := int(state[-1].argmax())) != tokenizer.eos_token_id:
            answer.append(token)
            state = model(inputs_embeds=torch.cat([whole, embed(torch.tensor([answer]))], dim=1)).logits[0]
        found[picture] = {
            "ids": [before, after],
            "logits": logits.tolist(),
            "answer": tokenizer.decode(answer, skip_special_tokens=True).strip(),
        }
result = {
    "version": transformers.__version__,
    "loading": {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys},
    "kinds": [type(tokenizer).__name__],
    "rows": rows,
    "tokens": len(tokenizer),
    "found": found,
}
Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
