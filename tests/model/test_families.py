"""Every kind of language model and of vision tower: assembled, trained a step, saved, and the same elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from assembled import refusal
from PIL import Image
from prompters import seen

from sightline.data.collate import collate
from sightline.errors import ModelError
from sightline.model.assemble import assemble, check_length, make_prompter
from sightline.model.attention import packed_attention
from sightline.model.batched import replies
from sightline.model.load import VLM, load
from sightline.model.save import save
from sightline.recipe import ModelRecipe
from sightline.train.loss import PackedLoss
from sightline.types import Encoded, ImageRef, Message, Text, ask

ELSEWHERE = '''
"""Another program: transformers alone, in a process of its own."""
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
asked = json.load(open(sys.argv[1]))
results = {}
for name, folder in asked["folders"].items():
    processor = AutoProcessor.from_pretrained(folder)
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    prompt = processor.apply_chat_template(asked["messages"], add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.open(asked["image"]), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    results[name] = {
        "keys": {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys},
        "ids": inputs["input_ids"][0].tolist(),
        "pixels": inputs["pixel_values"].flatten().tolist(),
        "logits": logits.tolist(),
        "text": processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip(),
    }
assert not any(name.split(".")[0] == "sightline" for name in sys.modules)
json.dump(results, open(sys.argv[2], "w"))
'''

CASES = [*(("llm", name) for name in families.LLMS), *(("tower", name) for name in families.TOWERS)]
NAMES = [f"{part}-{name}" for part, name in CASES]


@dataclass(frozen=True)
class Case:
    """What a model was after its step, and what it said."""

    folder: Path
    ids: list[int]
    pixels: torch.Tensor
    logits: torch.Tensor
    text: str
    packed: tuple[float, dict[str, torch.Tensor]]
    apart: tuple[float, dict[str, torch.Tensor]]
    stepped: tuple[torch.Tensor, torch.Tensor]


def spec(folder: Path, llm: str = "llama", tower: str = "clip", **changes: Any) -> ModelRecipe:
    return ModelRecipe(llm=str(folder / f"llm-{llm}"), vision_tower=str(folder / f"tower-{tower}"), **changes)


def samples(vlm: VLM, picture: ImageRef) -> list[Encoded]:
    """Three of different lengths, all longer than the windows; the second without a picture."""
    return [
        vlm.prompter.encode((Message("user", asked), Message("assistant", (Text(answer),))))
        for asked, answer in (
            ((picture, Text("\nWhat colour is this?")), "It is a red square."),
            ((Text("What is red?"),), "A colour, and not the only one there is."),
            ((Text("Describe"), picture, Text("the picture.")), "yellow green"),
        )
    ]


def gradients(vlm: VLM) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
    vlm.model.zero_grad()
    return found


def packed_loss(vlm: VLM, encoded: list[Encoded]) -> tuple[float, dict[str, torch.Tensor]]:
    pixels = torch.cat([vlm.prompter.pixels(sample.images) for sample in encoded if sample.images])
    batch = collate(encoded, pixels, vlm.prompter.grey_prompt(), vlm.prompter.grey_pixels())
    with packed_attention(vlm.model):
        total = PackedLoss(vlm.model)(batch, vlm.prompter.pixel_values(batch.pixels))
        total.backward()
    return float(total), gradients(vlm)


def apart_loss(vlm: VLM, encoded: list[Encoded]) -> tuple[float, dict[str, torch.Tensor]]:
    """The oracle: each sample by itself through transformers' own forward."""
    total = torch.zeros(())
    for sample in encoded:
        pixels = {"pixel_values": seen(vlm.prompter, sample.images)} if sample.images else {}
        logits = vlm.model(input_ids=torch.from_numpy(sample.ids)[None], **pixels).logits[0]
        labels = torch.from_numpy(sample.labels)
        loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        loss.backward()
        total += loss.detach()
    return float(total), gradients(vlm)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for part, name in CASES:
        if part == "llm":
            families.make_family(folder / f"llm-{name}", families.LLMS[name])
        else:
            families.make_tower(folder / f"tower-{name}", name)
    noise = torch.randint(0, 256, (60, 90, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(folder / "noise.png")
    return folder


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, Case]:
    made = {}
    picture = ImageRef(str(folder / "noise.png"))
    for (part, name), case in zip(CASES, NAMES, strict=True):
        recipe = spec(folder, **{part: name})
        prompter = make_prompter(recipe)
        torch.manual_seed(0)
        vlm = assemble(recipe, prompter)
        vlm.model.requires_grad_(True)
        encoded = samples(vlm, picture)
        packed, apart = packed_loss(vlm, encoded), apart_loss(vlm, encoded)
        some = next(p for n, p in vlm.model.named_parameters() if n.startswith("model.language_model") and p.dim() == 2)
        before = some.detach().clone()
        with torch.no_grad():
            for key, parameter in vlm.model.named_parameters():
                parameter -= 0.02 * packed[1].get(key, 0.0)
        question = (ask("What colour?", (picture,)),)
        prompt = vlm.prompter.encode(question)
        with torch.no_grad():
            pixels = seen(vlm.prompter, prompt.images)
            logits = vlm.model(input_ids=torch.from_numpy(prompt.ids)[None], pixel_values=pixels).logits[0]
        text = replies(vlm, [question], max_new_tokens=6, batch_size=1)[0]
        place = save(vlm, folder / "saved" / case)
        stepped = (before, some.detach().clone())
        made[case] = Case(place, prompt.ids.tolist(), pixels, logits, text, packed, apart, stepped)
    return made


@pytest.fixture(scope="module")
def elsewhere(cases: dict[str, Case], folder: Path) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": "What colour?"}]
    asked = {
        "folders": {name: str(case.folder) for name, case in cases.items()},
        "messages": [{"role": "user", "content": content}],
        "image": str(folder / "noise.png"),
    }
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    words = [sys.executable, "-c", ELSEWHERE, str(folder / "asked.json"), str(folder / "said.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    return said


@pytest.mark.parametrize("case", NAMES)
def test_a_pack_is_its_samples(cases: dict[str, Case], case: str) -> None:
    (packed, ours), (apart, theirs) = cases[case].packed, cases[case].apart
    assert packed == pytest.approx(apart, rel=1e-5)
    assert ours.keys() == theirs.keys() and len(ours) > 30
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)
    before, after = cases[case].stepped
    assert not torch.equal(before, after)


@pytest.mark.parametrize("case", NAMES)
def test_transformers_alone_says_the_same(cases: dict[str, Case], elsewhere: dict[str, Any], case: str) -> None:
    ours, theirs = cases[case], elsewhere[case]
    assert theirs["keys"] == {}
    assert theirs["ids"] == ours.ids
    torch.testing.assert_close(torch.tensor(theirs["pixels"]), ours.pixels.flatten(), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(theirs["logits"]), ours.logits, rtol=1e-5, atol=1e-5)
    assert theirs["text"] == ours.text


@pytest.mark.parametrize("case", NAMES)
def test_read_again_it_is_the_same(cases: dict[str, Case], case: str) -> None:
    ours = cases[case]
    vlm = load(ours.folder, device="cpu")
    with torch.no_grad():
        again = vlm.model(input_ids=torch.tensor([ours.ids]), pixel_values=ours.pixels).logits[0]
    torch.testing.assert_close(again, ours.logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", families.TOWERS)
def test_strategy_and_number_of_features_follow_from_the_tower(cases: dict[str, Case], name: str) -> None:
    from transformers import AutoModel

    _, tokens, strategy, leading = families.TOWERS[name]
    folder = cases[f"tower-{name}"].folder
    vlm = load(folder, device="cpu")
    config = vlm.model.config
    assert vlm.prompter.tokens_per_image == tokens == config.image_seq_length
    assert config.vision_feature_select_strategy == strategy
    assert json.loads((folder / "processor_config.json").read_text())["num_additional_image_tokens"] == leading
    tower: Any = AutoModel.from_config(config.vision_config).eval()
    tower.load_state_dict(vlm.model.model.vision_tower.state_dict())
    picture = cases[f"tower-{name}"].pixels
    with torch.no_grad():
        states = tower(picture, output_hidden_states=True).hidden_states[-2]
        wanted = vlm.model.model.multi_modal_projector(states[:, 1:] if strategy == "default" else states)
        made = vlm.model.get_image_features(pixel_values=picture).pooler_output
    assert wanted.shape[1] == tokens
    torch.testing.assert_close(torch.cat(tuple(made)), wanted[0], rtol=1e-5, atol=1e-6)


def test_a_padded_vocabulary_has_room(cases: dict[str, Case]) -> None:
    with_room, without = (load(cases[f"llm-{name}"].folder, device="cpu") for name in ("qwen2", "mistral"))
    assert with_room.model.config.text_config.vocab_size == 704
    assert with_room.prompter.image_token_id < len(with_room.prompter.tokenizer) < 704
    rows = without.model.get_input_embeddings().weight.shape[0]
    assert rows % 64 == 0 and rows - 64 < len(without.prompter.tokenizer) <= rows


def test_windows_matter_in_these_tests(folder: Path) -> None:
    """Else a window that training forgot would not be seen."""
    from transformers import AutoModelForCausalLM

    for name in ("mistral", "qwen2", "gemma3", "phi3"):
        llm: Any = AutoModelForCausalLM.from_pretrained(folder / f"llm-{name}")
        ids = torch.arange(3, 40)[None]
        with torch.no_grad():
            before = llm(ids, use_cache=False).logits
            llm.config.sliding_window = 1000
            for module in llm.modules():
                if getattr(module, "sliding_window", None):
                    module.sliding_window = 1000
            assert not torch.allclose(before, llm(ids, use_cache=False).logits, atol=1e-3), name


@pytest.mark.parametrize("name", families.REFUSED)
def test_what_llava_cannot_carry_is_refused_in_words(folder: Path, tmp_path: Path, name: str) -> None:
    settings, words = families.REFUSED[name]
    llm = families.make_config(tmp_path / "llm", settings)
    message = refusal(ModelRecipe(llm=str(llm), vision_tower=str(folder / "tower-clip")))
    assert words in message and str(llm) in message


def test_positions_that_the_longest_of_a_pack_decides_are_refused(folder: Path) -> None:
    recipe = spec(folder, "phi3_long")
    check_length(recipe, 256)
    with pytest.raises(ModelError, match=r"longrope.*batch.max_length=256"):
        check_length(recipe, 257)


def test_a_siglip_of_free_resolution_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import Siglip2VisionConfig

    Siglip2VisionConfig().save_pretrained(tmp_path)
    assert "naflex" in refusal(ModelRecipe(llm=str(folder / "llm-llama"), vision_tower=str(tmp_path)))


def test_the_tower_of_a_whole_siglip(folder: Path, tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipTextConfig

    config = families.VISION | families.TOWERS["siglip"][0]
    text = SiglipTextConfig(vocab_size=100, **families.SIZES, projection_size=32)
    whole = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=config))
    whole.save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(tmp_path)
    recipe = ModelRecipe(llm=str(folder / "llm-llama"), vision_tower=str(tmp_path))
    vlm = assemble(recipe, make_prompter(recipe))
    theirs = whole.vision_model.state_dict()
    ours: dict[str, Any] = vlm.model.model.vision_tower.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert vlm.prompter.tokens_per_image == 16


@pytest.mark.parametrize("way", ["pad", "crop"])
def test_the_pixels_are_those_of_the_towers_own_processor(folder: Path, way: str) -> None:
    """Of a square picture, where padding and cropping change nothing, and resizing is the same."""
    from transformers import AutoImageProcessor

    picture = Image.open(folder / "noise.png").resize((56, 56))
    picture.save(folder / "square.png")
    for name in ("siglip", "dinov2"):
        prompter = make_prompter(spec(folder, tower=name, image_aspect_ratio=way))
        own = AutoImageProcessor.from_pretrained(folder / f"tower-{name}", backend="pil")
        own.size = {"height": 56, "width": 56} if name == "siglip" else {"shortest_edge": 56}
        wanted = own(picture, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(seen(prompter, (ImageRef(str(folder / "square.png")),)), wanted, rtol=0, atol=1e-6)
