"""Official folders made by hand are the models that transformers makes of the same parts."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import official_files as made
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from sightline.convert import official
from sightline.convert.source import Source
from sightline.convert.verify import to_vlm
from sightline.convert.vocabulary import read_tokenizer
from sightline.types import ImageRef, ask

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def picture(parts: Path) -> Path:
    picture = Image.new("RGB", (80, 60), (220, 30, 30))
    picture.paste((40, 60, 220), (10, 20, 40, 50))
    picture.save(parts / "picture.png")
    return parts / "picture.png"


def put_together(parts: Path, tensors: dict[str, torch.Tensor] | None = None) -> LlavaForConditionalGeneration:
    """A LLaVA of the same parts, by transformers alone; `tensors` are the language model's."""
    llm: Any = LlamaForCausalLM.from_pretrained(parts / "llm")
    if tensors is not None:
        llm.load_state_dict(tensors)
    old = llm.config.vocab_size
    llm.resize_token_embeddings(old + 2, pad_to_multiple_of=64, mean_resizing=False)
    tower: Any = CLIPVisionModel.from_pretrained(parts / "tower")
    config = LlavaConfig(
        text_config=llm.config.to_dict(),
        vision_config=tower.config.to_dict(),
        image_token_index=old,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    projector = made.projector_tensors()
    for layer, number in ((1, 0), (2, 2)):
        linear = model.model.multi_modal_projector.get_submodule(f"linear_{layer}")
        state = {kind: projector[f"model.mm_projector.{number}.{kind}"] for kind in ("weight", "bias")}
        linear.load_state_dict(state)
    return model.eval()


def inputs(parts: Path, picture: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and pixels by the rules of the official programs: text piece by piece, pictures padded to a square."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(parts / "llm")
    before = tokenizer(f"{SYSTEM}USER: ", add_special_tokens=False)["input_ids"]
    after = tokenizer("\nWhat colour is this? ASSISTANT:", add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id, *before, *[len(tokenizer)] * 16, *after]
    opened = Image.open(picture)
    square = Image.new("RGB", (80, 80), (122, 116, 104))
    square.paste(opened, (0, 10))
    pixels = CLIPImageProcessor.from_pretrained(parts / "tower")(square, return_tensors="pt")["pixel_values"]
    return torch.tensor([ids]), pixels


@torch.inference_mode()
def theirs(model: LlavaForConditionalGeneration, parts: Path, picture: Path) -> torch.Tensor:
    ids, pixels = inputs(parts, picture)
    return model(input_ids=ids, pixel_values=pixels).logits[0, :, : int(ids.max())]


@torch.inference_mode()
def ours(source: Source, picture: Path) -> torch.Tensor:
    vlm = to_vlm(source, torch.float32)
    encoded = vlm.prompter.encode([ask("What colour is this?", [ImageRef(str(picture))])])
    pixels = vlm.prompter.pixel_values(vlm.prompter.pixels(encoded.images))
    more: dict[str, Any] = {}
    if vlm.prompter.tiles is not None:
        more = {"image_sizes": torch.tensor([[60, 80]])}
    logits = vlm.model(input_ids=torch.from_numpy(encoded.ids)[None], pixel_values=pixels, **more).logits
    return logits[0, :, : vlm.prompter.image_token_id]


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.std() > 0.1
    torch.testing.assert_close(one, other, rtol=0, atol=2e-4 * float(other.std()))


def test_llava_15(parts: Path, picture: Path, tmp_path: Path) -> None:
    source = official.read(made.write_v15(parts, tmp_path / "llava-v1.5-7b"))
    assert source.kind == "an official LLaVA"
    assert source.prompter.template.name == "vicuna"
    same(ours(source, picture), theirs(put_together(parts), parts, picture))


def test_rows_are_those_of_assembling(parts: Path, tmp_path: Path) -> None:
    source = official.read(made.write_v15(parts, tmp_path / "llava-v1.5-7b"))
    llm = made.llm_tensors(parts)
    for hub, own in (("model.embed_tokens", "model.embed_tokens"), ("lm_head", "lm_head")):
        old = llm[f"{own}.weight"]
        new = source.tensors[f"language_model.{hub}.weight"].read()
        assert len(new) % 64 == 0 and len(new) == source.config.text_config.vocab_size
        assert torch.equal(new[: len(old)], old)
        assert torch.equal(new[len(old) :], old.mean(0).expand(len(new) - len(old), -1))
    tokenizer = source.prompter.tokenizer
    assert tokenizer.convert_ids_to_tokens([len(old), len(old) + 1]) == ["<image>", "<pad>"]


def test_a_projector_beside_its_language_model(parts: Path, picture: Path, tmp_path: Path) -> None:
    expected = theirs(put_together(parts), parts, picture)
    source = official.read(made.write_projector(parts, tmp_path / "llava-v1.5-7b-pretrain"))
    assert source.kind == f"an official projector on {parts / 'llm'}"
    same(ours(source, picture), expected)
    elsewhere = made.write_projector(parts, tmp_path / "v1", _name_or_path="/gone/vicuna", mm_vision_tower="/gone/clip")
    named = official.read(elsewhere, base=str(parts / "llm"), vision_tower=str(parts / "tower"))
    same(ours(named, picture), expected)


def test_adapters(parts: Path, picture: Path, tmp_path: Path) -> None:
    folder, tensors = made.write_lora(parts, tmp_path / "llava-v1.5-7b-lora")
    source = official.read(folder)
    assert source.kind == f"adapters of an official LLaVA on {parts / 'llm'}"
    merged = put_together(parts, tensors)
    same(ours(source, picture), theirs(merged, parts, picture))
    assert not torch.allclose(ours(source, picture), theirs(put_together(parts), parts, picture), atol=1e-2)


def test_adapters_on_a_whole_llava(parts: Path, tmp_path: Path) -> None:
    """As finetune_task_lora.sh leaves them."""
    base = made.write_v15(parts, tmp_path / "llava-v1.5-7b")
    folder, tensors = made.write_lora(parts, tmp_path / "llava-v1.5-7b-task-lora")
    (folder / "non_lora_trainables.bin").unlink()
    source = official.read(folder, base=str(base))
    assert torch.equal(
        source.tensors["multi_modal_projector.linear_1.weight"].read(),
        made.projector_tensors()["model.mm_projector.0.weight"],
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(source.tensors[f"language_model.{name}"].read(), tensors[name])


def test_llava_16(parts: Path, picture: Path, tmp_path: Path) -> None:
    """Its tiles are computed as those of LLaVA-NeXT, of which a grid is height and width."""
    source = official.read(made.write_v16(parts, tmp_path / "llava-v1.6-vicuna-7b"))
    assert source.config.model_type == "llava_next"
    assert source.config.image_grid_pinpoints == [[112, 56], [56, 112], [112, 112], [56, 168], [168, 56]]
    prompter = source.prompter
    assert prompter.tiles is not None and prompter.image_processor.image_grid_pinpoints[0] == [112, 56]
    # By hand: 80 x 60 keeps most and wastes least on 112 x 112 (112 x 84 of it): 8 rows of 8 features, of which the
    # upper and the lower one are padding, with a newline each, and 16 of the whole picture.
    encoded = prompter.encode([ask("What?", [ImageRef(str(picture))])])
    assert list(encoded.ids).count(prompter.image_token_id) == 16 + 6 * 9
    assert torch.equal(source.tensors["image_newline"].read(), made.newline()["model.image_newline"])
    assert ours(source, picture).std() > 0.1


@torch.inference_mode()
def test_llava_16_by_hand(parts: Path, tmp_path: Path) -> None:
    """The steps of the official prepare_inputs_labels_for_multimodal, for one wide picture of 100 x 40."""
    picture = Image.new("RGB", (100, 40), (30, 180, 60))
    picture.paste((220, 30, 30), (5, 5, 50, 30))
    picture.save(tmp_path / "wide.png")
    processor = CLIPImageProcessor.from_pretrained(parts / "tower")
    # 112 x 56 holds it at 112 x 45 with 5 black rows above and 6 below; the whole is squeezed into a square first.
    canvas = Image.new("RGB", (112, 56))
    canvas.paste(picture.resize((112, 45), Image.Resampling.BICUBIC), (0, 5))
    views = [picture.resize((56, 56), Image.Resampling.BICUBIC)]
    views += [canvas.crop((0, 0, 56, 56)), canvas.crop((56, 0, 112, 56))]
    tower: Any = CLIPVisionModel.from_pretrained(parts / "tower")
    seen = tower(processor(views, return_tensors="pt")["pixel_values"], output_hidden_states=True)
    w = made.projector_tensors() | made.newline()
    x = seen.hidden_states[-2][:, 1:]
    x = torch.nn.functional.gelu(x @ w["model.mm_projector.0.weight"].T + w["model.mm_projector.0.bias"])
    x = x @ w["model.mm_projector.2.weight"].T + w["model.mm_projector.2.bias"]
    # 4 x 8 features of the two tiles, of which 100 : 40 leaves int(40 * 8 / 100) = 3 rows: none is cut from both sides.
    tiles = torch.cat([x[1].view(4, 4, 64), x[2].view(4, 4, 64)], dim=1)
    rows = [torch.cat([row, w["model.image_newline"][None]]) for row in tiles]
    features = torch.cat([x[0], *rows])

    llm: Any = LlamaForCausalLM.from_pretrained(parts / "llm")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(parts / "llm")
    before = [tokenizer.bos_token_id, *tokenizer(f"{SYSTEM}USER: ", add_special_tokens=False)["input_ids"]]
    after = tokenizer("\nWhat colour is this? ASSISTANT:", add_special_tokens=False)["input_ids"]
    words = llm.get_input_embeddings()
    embeds = torch.cat([words(torch.tensor(before)), features, words(torch.tensor(after))])
    expected = llm(inputs_embeds=embeds[None]).logits[0]

    vlm = to_vlm(official.read(made.write_v16(parts, tmp_path / "llava-v1.6-vicuna-7b")), torch.float32)
    encoded = vlm.prompter.encode([ask("What colour is this?", [ImageRef(str(tmp_path / "wide.png"))])])
    pixels = vlm.prompter.pixel_values(vlm.prompter.pixels(encoded.images))
    ids = torch.from_numpy(encoded.ids)[None]
    logits = vlm.model(input_ids=ids, pixel_values=pixels, image_sizes=torch.tensor([[40, 100]])).logits[0]
    same(logits[:, : expected.shape[1]], expected)


def test_grids_written_as_text(parts: Path, tmp_path: Path) -> None:
    folder = made.write_v16(parts, tmp_path / "v1.6", image_grid_pinpoints="[(56, 112), (112, 56)]")
    assert official.read(folder).config.image_grid_pinpoints == [[112, 56], [56, 112]]


def test_a_projector_of_one_layer(parts: Path, tmp_path: Path) -> None:
    folder = made.write_projector(parts, tmp_path / "llava-7b-v0", mm_projector_type="linear")
    tensors = {
        f"model.mm_projector.{kind}": made.projector_tensors()[f"model.mm_projector.0.{kind}"]
        for kind in ("weight", "bias")
    }
    torch.save(tensors, folder / "mm_projector.bin")
    source = official.read(folder)
    assert source.config.projector_depth == 1
    assert torch.equal(source.tensors["multi_modal_projector.linear_2.weight"].read(), torch.eye(64))
    assert not source.tensors["multi_modal_projector.linear_2.bias"].read().any()
    assert source.prompter.template.name == "llava_v0"


def test_pictures_that_are_cropped(parts: Path, tmp_path: Path) -> None:
    for rule in ("square", None):
        source = official.read(made.write_v15(parts, tmp_path / f"v1-{rule}", image_aspect_ratio=rule))
        assert not getattr(source.prompter.image_processor, "do_pad", False)


def test_the_tower_beside_the_weights(parts: Path, tmp_path: Path) -> None:
    """A folder that was moved together with its vision tower."""
    folder = made.write_v15(parts, tmp_path / "v1", mm_vision_tower="/before/clip-vit-tiny")
    (folder / "clip-vit-tiny").symlink_to(parts / "tower")
    assert official.read(folder).parts == {"llm": str(folder), "vision_tower": str(folder / "clip-vit-tiny")}


@pytest.mark.parametrize(
    ("name", "before", "template"),
    [
        ("llava-v1.5-7b", "", "vicuna"),
        ("llava-llama-2-13b-chat", "", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "", "mistral_instruct"),
        ("mine", "liuhaotian/llava-v1.5-13b", "vicuna"),
        ("llava-7b-v0", "", "llava_v0"),
    ],
)
def test_the_template_is_the_one_of_the_name(
    parts: Path, tmp_path: Path, name: str, before: str, template: str
) -> None:
    folder = made.write_v15(parts, tmp_path / name, _name_or_path=before)
    assert official.read(folder).prompter.template.name == template
    assert official.read(folder, template="llava_v1").prompter.template.name == "llava_v1"


def test_a_checkpoint_is_named_by_its_run(parts: Path, tmp_path: Path) -> None:
    folder = made.write_v15(parts, tmp_path / "llava-v1.5-7b" / "checkpoint-5", _name_or_path="")
    assert official.read(folder).prompter.template.name == "vicuna"


def test_only_a_sentencepiece_model(parts: Path, tmp_path: Path) -> None:
    """Released models have no tokenizer.json; ids are those of sentencepiece (tests/model/sentencepiece.json)."""
    golden = json.loads((Path(__file__).parents[1] / "model" / "sentencepiece.json").read_text())["internlm"]
    folder = made.write_v15(parts, tmp_path / "llava-v1.5-7b")
    (folder / "tokenizer.json").unlink()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    made.write_json(folder, settings, "tokenizer_config.json")
    (folder / "tokenizer.model").write_bytes(base64.b64decode(golden["model"]))
    tokenizer = read_tokenizer(folder)
    for text, ids in golden["ids"].items():
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
    assert tokenizer.pad_token is None and tokenizer.bos_token == "<s>"
