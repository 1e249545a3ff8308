"""What every racer gets: rows in the mixture of LLaVA's mix665k, JPEGs of COCO's size, a language model of about 60 M
parameters and a small CLIP, the LLaVA of the two - and the token ids and targets that each row must become.

    python bench/race/world.py FOLDER
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

sys.path.insert(0, str(Path(__file__).parents[1]))
from mixture import conversations, draw_turns, made_up_words, speaker
from pixels import photograph

ROWS, PICTURES, VOCABULARY, MAX_LENGTH = 640, 64, 32_000, 2048
LLAMA = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}
CLIP = {
    "image_size": 168,
    "patch_size": 14,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
"""144 features a picture: a quarter of LLaVA-1.5's, as the language model's width is an eighth of Vicuna-7B's."""


RECIPE = {
    "model": {"template": "vicuna", "system": "", "image_aspect_ratio": "crop", "llm": "", "vision_tower": ""},
    "data": [{"path": ""}],
    "batch": {"global_batch": 8, "max_length": MAX_LENGTH, "workers": 1, "shuffle": False},
    "optim": {"lr": 1e-4, "weight_decay": 0.0, "schedule": "constant", "warmup_ratio": 0.0, "epochs": 1},
    "run": {"save_every": 0, "export": False},
}
MODES: dict[str, dict[str, Any]] = {
    "full": {"llm": "full", "vision_tower": "frozen"},
    "frozen": {"llm": "frozen", "vision_tower": "frozen"},
    "lora": {"llm": "lora", "vision_tower": "frozen", "llm_lora": {"r": 128, "alpha": 256, "dropout": 0.0}},
}
"""What learns besides the projector: stage 2, stage 1, LLaVA's adapters (without dropout, which every program draws
by itself)."""

PACK_TOKENS = {"full": 1024, "frozen": 1024, "lora": 768}
"""As many as are fast with less memory than others need; with adapters a token keeps more for the backward pass."""


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = random.Random(0)
    words = made_up_words(rng, rare=40_000)
    write_rows(folder, rng, words)
    write_parts(folder, words)
    write_llava(folder)
    write_tokens(folder)
    # XTuner's transformers is too old for what the newest one writes.
    convert = [sys.executable, "-m", "sightline", "convert", folder / "hf", folder / "xtuner", "--to", "xtuner"]
    subprocess.run(convert, check=True)


def write_rows(folder: Path, rng: random.Random, words: list[str]) -> None:
    """`rows.json` in LLaVA's form, and `images/`."""
    (folder / "images").mkdir()
    for number in range(PICTURES):
        width, height = rng.choice([(640, 480), (640, 480), (640, 427), (480, 640)])
        (folder / "images" / f"{number:03}.jpg").write_bytes(photograph(width, height, number))

    say = speaker(rng, words)
    rows = []
    for number in range(ROWS):
        row: dict[str, Any] = {"id": f"{number:06}"}
        picture, turns = draw_turns(rng, say, text_turns=3)
        if picture:
            row["image"] = f"{rng.randrange(PICTURES):03}.jpg"
        rows.append(row | {"conversations": conversations(turns, picture)})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def write_parts(folder: Path, words: list[str]) -> None:
    """`llm/` and `tower/`, as a user would download them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    # Words are cut before they are merged, so that a racer may tokenise a turn or a whole conversation.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    said = "USER: ASSISTANT: Answer the question using a single word or phrase."
    corpus = [" ".join(words), " ".join(words).title(), *[said] * 99]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=VOCABULARY - 1, special_tokens=special, initial_alphabet=alphabet)
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **names)
    torch.manual_seed(0)
    llama = LlamaConfig(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, **LLAMA)
    crop = {"size": {"shortest_edge": 168}, "crop_size": {"height": 168, "width": 168}}
    for part in (LlamaForCausalLM(llama), fast):
        part.save_pretrained(folder / "llm")
    for part in (CLIPVisionModel(CLIPVisionConfig(**CLIP)), CLIPImageProcessorPil(**crop)):
        part.save_pretrained(folder / "tower")


def recipe(folder: Path, mode: str, *settings: str) -> Any:
    """What Sightline is given: one of MODES, on the files of `folder`."""
    from sightline.recipe import Recipe, load_recipe

    tune = {"tune": MODES[mode]}
    path = folder / f"{mode}.yaml"
    path.write_text(yaml.safe_dump(RECIPE | tune), encoding="utf-8")
    own = {"model.llm": "llm", "model.vision_tower": "tower", "data.0.path": "rows.json", "data.0.images": "images"}
    files = [f"{key}={folder / name}" for key, name in own.items()]
    loaded: Recipe = load_recipe(str(path), [*files, f"batch.pack_tokens={PACK_TOKENS[mode]}", *settings])
    return loaded


def write_llava(folder: Path) -> None:
    """`hf/`: both with a new projector, in the layout of the hub, for racers that start from a whole model."""
    from sightline.model.assemble import assemble, make_prompter
    from sightline.model.save import save

    torch.manual_seed(0)
    model = recipe(folder, "full").model
    save(assemble(model, make_prompter(model)), folder / "hf", dtype=torch.float32)


def write_tokens(folder: Path) -> None:
    """`tokens.json`: of each row the picture, the ids, with one per feature of the picture, and the labels (-100: no
    target)."""
    from rich.console import Console

    from sightline.data.dataset import open_dataset
    from sightline.model.assemble import make_prompter

    race = recipe(folder, "full")
    dataset = open_dataset(race.data, make_prompter(race.model), MAX_LENGTH, Console(stderr=True))
    assert len(dataset) == ROWS, dataset.bad_rows[:3]
    samples = []
    for number in range(ROWS):
        encoded = dataset.encode(number)
        image = str(encoded.images[0].source) if encoded.images else None
        samples.append({"image": image, "ids": encoded.ids.tolist(), "labels": encoded.labels.tolist()})
    (folder / "tokens.json").write_text(json.dumps(samples), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
