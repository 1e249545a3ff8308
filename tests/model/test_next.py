"""LLaVA-NeXT models: put together, turned from a LLaVA, saved, read again here and by transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from exports import conversations, ours
from PIL import Image
from prompters import seen
from safetensors import safe_open
from safetensors.torch import save_file
from test_elsewhere import ELSEWHERE
from transformers import AutoProcessor, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from sightline.errors import ModelError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.batched import replies
from sightline.model.generate import Memory, Sampling, reply
from sightline.model.load import VLM, load
from sightline.model.save import save
from sightline.model.tune import apply_tuning
from sightline.prompt.tiles import Tiles, heights_and_widths, square_grids
from sightline.recipe import ModelRecipe, OptimRecipe, TuneRecipe
from sightline.types import Encoded, ImageRef, Message, Text, ask

SIZES = {"tall": (60, 190), "wide": (300, 100), "square": (150, 150)}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.make_llm(folder / "llm", initializer_range=0.06)
    tiny.make_tower(folder / "tower")
    for name, (width, height) in SIZES.items():
        noise = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    return folder


def spec(parts: Path, **changes: Any) -> ModelRecipe:
    if "from_model" in changes:
        return ModelRecipe.model_validate(changes)
    return ModelRecipe.model_validate({"llm": str(parts / "llm"), "vision_tower": str(parts / "tower"), **changes})


def made(recipe: ModelRecipe) -> VLM:
    prompter = make_prompter(recipe)
    torch.manual_seed(5)
    return assemble(recipe, prompter)


def logits(vlm: VLM, encoded: Encoded) -> torch.Tensor:
    more: dict[str, Any] = {}
    if encoded.images:
        more = {"pixel_values": seen(vlm.prompter, encoded.images), "image_sizes": heights_and_widths([encoded])}
    with torch.no_grad():
        result: torch.Tensor = vlm.model(input_ids=torch.from_numpy(encoded.ids)[None], **more).logits[0]
    return result


@pytest.fixture(scope="module")
def vlm(parts: Path) -> VLM:
    one = made(spec(parts, next=True))
    for parameter in one.model.parameters():  # as far from zero as trained weights, so that pictures matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    return one


@pytest.fixture(scope="module")
def saved(vlm: VLM, parts: Path) -> Path:
    return save(vlm, parts / "saved")


# --- saved and read again ---------------------------------------------------------------------------------------------


def test_transformers_alone_says_the_same(vlm: VLM, saved: Path, parts: Path) -> None:
    asked = conversations(parts)
    (parts / "asked.json").write_text(json.dumps({"folders": [str(saved)], "conversations": asked}))
    words = [sys.executable, "-c", ELSEWHERE, str(parts / "asked.json"), str(parts / "answers.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=parts)
    assert done.returncode == 0, done.stderr
    (theirs,) = json.loads((parts / "answers.json").read_text())
    assert theirs["keys"] == {}
    assert theirs["kind"] == ["LlavaNextProcessor", "LlavaNextForConditionalGeneration"]
    questions = [ours(messages) for messages in asked]
    said = replies(vlm, questions, max_new_tokens=8, batch_size=1)
    assert len(set(said)) > 2
    for messages, answer, text in zip(questions, theirs["answers"], said, strict=True):
        encoded = vlm.prompter.encode(messages)
        assert answer["ids"] == encoded.ids.tolist()
        truth = logits(vlm, encoded).flatten()
        torch.testing.assert_close(torch.tensor(answer["logits"]), truth, rtol=1e-5, atol=1e-5)
        assert answer["text"] == text


def test_read_again_it_is_the_same_bit_for_bit(vlm: VLM, saved: Path, parts: Path) -> None:
    again = load(saved, device="cpu")
    assert again.prompter.tiles == vlm.prompter.tiles
    assert again.model.config.image_grid_pinpoints == [list(grid) for grid in square_grids(56)]
    for name, tensor in vlm.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    for messages in conversations(parts):
        encoded = again.prompter.encode(ours(messages))
        assert torch.equal(logits(again, encoded), logits(vlm, encoded))


def test_files_and_names_are_those_of_the_hub(saved: Path) -> None:
    with safe_open(saved / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
    assert "image_newline" in names
    prefixes = {name.split(".")[0] for name in names}
    assert prefixes == {"image_newline", "language_model", "multi_modal_projector", "vision_tower"}
    config, image, processor = (
        json.loads((saved / f"{name}.json").read_text())
        for name in ("config", "preprocessor_config", "processor_config")
    )
    assert (config["model_type"], config["architectures"]) == ("llava_next", ["LlavaNextForConditionalGeneration"])
    grids = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    assert config["image_grid_pinpoints"] == image["image_grid_pinpoints"] == grids
    assert image["image_processor_type"] == "LlavaNextImageProcessor"
    assert image["processor_class"] == processor["processor_class"] == "LlavaNextProcessor"
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (14, 1)


@pytest.mark.parametrize("batch_size", [2, 4])
def test_batches_answer_as_one_by_one(vlm: VLM, parts: Path, batch_size: int) -> None:
    questions = [ours(messages) for messages in conversations(parts)]
    alone = replies(vlm, questions, max_new_tokens=6, batch_size=1)
    assert replies(vlm, questions, max_new_tokens=6, batch_size=batch_size) == alone


def test_a_remembered_conversation_computes_each_image_once(vlm: VLM, parts: Path) -> None:
    counts: list[int] = []
    hook = vlm.model.model.vision_tower.register_forward_hook(lambda _, args, out: counts.append(len(args[0])))
    memory, messages, fresh = Memory(), list[Message](), list[str]()
    said = []
    for shown in (["wide"], ["tall", "square"], [], ["wide"]):
        messages.append(ask("What?", [ImageRef(str(parts / f"{name}.png")) for name in shown]))
        said.append("".join(reply(vlm, messages, Sampling(max_new_tokens=5), memory)))
        remembered, counts[:] = list(counts), []
        fresh.append("".join(reply(vlm, messages, Sampling(max_new_tokens=5))))
        assert remembered == ([sum({"wide": 4, "tall": 4, "square": 5}[name] for name in shown)] if shown else [])
        counts.clear()
        messages.append(Message("assistant", (Text(said[-1]),)))
    hook.remove()
    assert said == fresh


@pytest.mark.parametrize("depth", [2, 3])
def test_siglip_and_other_projectors_have_tiles_too(parts: Path, depth: int) -> None:
    """A tower without a class token, of 60 px in patches of 14: 4 x 4 of them; grids are scaled to it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(image_size=60, patch_size=14, **sizes)).save_pretrained(parts / "siglip")
    SiglipImageProcessorPil(size={"height": 60, "width": 60}).save_pretrained(parts / "siglip")
    one = made(spec(parts, vision_tower=str(parts / "siglip"), next=True, projector_depth=depth))
    assert one.prompter.tiles == Tiles(((60, 120), (120, 60), (120, 120), (180, 60), (60, 180)), 60, 4)
    questions = [ours(messages) for messages in conversations(parts)]
    again = load(save(one, parts / f"siglip-{depth}"), device="cpu")
    for messages in questions:
        encoded = one.prompter.encode(messages)
        assert torch.equal(logits(one, encoded), logits(again, encoded))
    if depth == 2:
        processor = AutoProcessor.from_pretrained(parts / "siglip-2", backend="pil")
        theirs = processor(images=[Image.open(parts / "tall.png")], text="<image>", return_tensors="pt")
        count = int((theirs["input_ids"] == one.prompter.image_token_id).sum())
        assert count == one.prompter.image_tokens(*SIZES["tall"])
        pixels = seen(one.prompter, [ImageRef(str(parts / "tall.png"))])
        assert torch.equal(theirs["pixel_values"][0], pixels)


# --- what a recipe may ask for ----------------------------------------------------------------------------------------


def test_a_llava_becomes_a_llava_next(parts: Path) -> None:
    before = made(spec(parts))
    folder = save(before, parts / "llava")
    after = made(spec(parts, from_model=str(folder), next=True))
    new, old = after.model.state_dict(), before.model.state_dict()
    assert new.keys() - old.keys() == {"model.image_newline"} and old.keys() <= new.keys()
    assert all(torch.equal(new[name], old[name]) for name in old)
    # Official LLaVA's start: of the length of an embedding.
    assert 0.5 < float(new["model.image_newline"].norm()) < 1.5
    assert not isinstance(made(spec(parts, from_model=str(folder))).model, type(after.model))


def test_a_llava_next_stays_one_and_may_get_other_grids(vlm: VLM, saved: Path, parts: Path) -> None:
    same = made(spec(parts, from_model=str(saved)))
    assert same.prompter.tiles == vlm.prompter.tiles
    assert torch.equal(same.model.model.image_newline, vlm.model.model.image_newline)
    other = made(spec(parts, from_model=str(saved), grid_pinpoints=[[168, 168], [56, 56]]))
    assert other.model.config.image_grid_pinpoints == [[168, 168], [56, 56]]
    assert other.prompter.tiles.grids == ((168, 168), (56, 56))
    encoded = other.prompter.encode([ask("What?", [ImageRef(str(parts / "square.png"))])])
    assert (encoded.ids == other.prompter.image_token_id).sum() == 16 + 12 * 13
    assert logits(other, encoded).shape[0] == len(encoded.ids)
    again = load(save(other, parts / "other"), device="cpu")
    assert again.prompter.tiles == other.prompter.tiles


@pytest.mark.parametrize("with_newline", [True, False])
def test_the_newline_comes_with_the_projector(
    parts: Path, vlm: VLM, saved: Path, with_newline: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved if with_newline else save(made(spec(parts)), parts / "first-stage")
    recipe = spec(parts, next=True, projector_from=str(source))
    prompter = make_prompter(recipe)
    torch.manual_seed(99)
    found = assemble(recipe, prompter).model
    projector = load(source, device="cpu").model.model.multi_modal_projector
    assert torch.equal(found.model.multi_modal_projector.linear_1.weight, projector.linear_1.weight)
    assert torch.equal(found.model.image_newline, vlm.model.model.image_newline) is with_newline
    said = " ".join(capsys.readouterr().err.split())
    assert ("image_newline: from" if with_newline else "image_newline: new, for there is none in") in said


@pytest.mark.parametrize("place", ["run/learned", "run", "mm_projector.bin", "iter_4.pth"])
def test_the_newline_is_read_wherever_a_projector_is(parts: Path, vlm: VLM, tmp_path: Path, place: str) -> None:
    newline, layers = vlm.model.model.image_newline.detach(), vlm.model.model.multi_modal_projector.state_dict()
    state = {f"model.multi_modal_projector.{name}": tensor for name, tensor in layers.items()}
    state["model.image_newline"] = newline
    if place.startswith("run"):
        (tmp_path / "run" / "learned").mkdir(parents=True)
        save_file(state, tmp_path / "run" / "learned" / "weights.safetensors")
    else:
        torch.save(state if place.endswith("bin") else {"state_dict": state}, tmp_path / place)
    found = made(spec(parts, next=True, projector_from=str(tmp_path / place))).model.model
    assert torch.equal(found.image_newline, newline) and found.image_newline.requires_grad
    assert torch.equal(found.multi_modal_projector.linear_1.weight, layers["linear_1.weight"])


@pytest.mark.parametrize(
    ("wrong", "words"), [(torch.ones(7), "it is [7], not [64]"), (torch.ones(64).log() / 0, "not finite")]
)
def test_a_newline_that_does_not_fit(parts: Path, vlm: VLM, tmp_path: Path, wrong: torch.Tensor, words: str) -> None:
    layers = vlm.model.model.multi_modal_projector.state_dict()
    state = {f"multi_modal_projector.{name}": tensor for name, tensor in layers.items()} | {"image_newline": wrong}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="the image_newline of ") as error:
        made(spec(parts, next=True, projector_from=str(tmp_path)))
    assert words in str(error.value)


REFUSED = {
    "no multiple": ({"next": True, "grid_pinpoints": [[56, 100]]}, "[56, 100] does not consist of whole tiles"),
    "smaller than a tile": ({"next": True, "grid_pinpoints": [[0, 56]]}, "write multiples of 56"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_grids_that_are_none_are_refused(parts: Path, case: str) -> None:
    changes, reason = REFUSED[case]
    with pytest.raises(ModelError) as error:
        make_prompter(spec(parts, **changes))
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_grids_without_tiles_are_refused(parts: Path) -> None:
    with pytest.raises(ValueError, match="grid_pinpoints is given, but next is false"):
        spec(parts, grid_pinpoints=[[56, 56]])
    folder = save(made(spec(parts)), parts / "plain")
    with pytest.raises(ModelError, match=r"has no tiles; model\.next=true"):
        make_prompter(spec(parts, from_model=str(folder), grid_pinpoints=[[56, 56]]))


def test_a_processor_that_cuts_other_tiles_is_refused(saved: Path, vlm: VLM, parts: Path) -> None:
    folder = save(vlm, parts / "odd")
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"image_grid_pinpoints": [[56, 56]]}))
    with pytest.raises(ModelError, match="make image_grid_pinpoints the same in both"):
        load(folder, device="cpu")


@pytest.mark.parametrize("projector", ["full", "frozen"])
def test_the_newline_learns_with_the_projector(parts: Path, projector: str) -> None:
    model = made(spec(parts, next=True)).model
    tune = TuneRecipe.model_validate({"llm": "full", "projector": projector})
    groups = {group.name: group for group in apply_tuning(model, tune, OptimRecipe(lr=1.0, projector_lr=0.5))}
    newline = model.model.image_newline
    assert newline.requires_grad is (projector == "full")
    if projector == "full":
        ids = [id(parameter) for parameter in groups["projector"].parameters]
        assert id(newline) in ids and len(ids) == 5 and groups["projector"].lr == 0.5
    else:
        assert "projector" not in groups
