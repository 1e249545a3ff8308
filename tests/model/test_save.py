"""What is written loads in programs that never heard of Sightline, and says the same there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import processors

from sightline.errors import ModelError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.generate import replies
from sightline.model.load import VLM, load
from sightline.model.save import save
from sightline.model.tune import apply_tuning, merge_adapters
from sightline.prompt.templates import TEMPLATES
from sightline.recipe import ModelRecipe, OptimRecipe, TuneRecipe
from sightline.types import Encoded, ImageRef, Message, Text, interleave

ELSEWHERE = '''
"""Another program: transformers alone. Reads questions, writes what it makes of them."""
import json, sys
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
results = []
for folder in json.load(open(sys.argv[1]))["folders"]:
    processor = AutoProcessor.from_pretrained(folder)
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    found = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    answers = []
    for messages in json.load(open(sys.argv[1]))["conversations"]:
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0]
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        pixels = inputs.get("pixel_values")
        answers.append(
            {
                "ids": inputs["input_ids"][0].tolist(),
                "logits": logits.flatten().tolist(),
                "pixels": None if pixels is None else pixels.flatten().tolist(),
                "text": text.strip(),
            }
        )
    kind = type(processor).__name__, type(model).__name__
    results.append({"keys": found, "answers": answers, "kind": kind, "eos": model.generation_config.eos_token_id})
assert not any(name.split(".")[0] == "sightline" for name in sys.modules)
json.dump(results, open(sys.argv[2], "w"))
'''


def add_bos(llm: Path) -> Path:
    """As Llama's tokenizers do, whose prompt would begin twice if the template's own begin were not seen."""
    tokenizer = tiny.make_tokenizer("legacy")
    start = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [start])
    tokenizer.save_pretrained(llm)
    return llm


def as_vicuna(llm: Path) -> Path:
    """Its generation_config.json is one that transformers refuses to write."""
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6}
    (llm / "generation_config.json").write_text(json.dumps(config | {"max_length": 4096}), encoding="utf-8")
    return llm


def built(folder: Path, template: str = "vicuna", pad: str = "pad", dtype: torch.dtype | None = None) -> VLM:
    spec = ModelRecipe.model_validate(
        {
            "llm": str(folder / "llm"),
            "vision_tower": str(tiny.make_tower(folder / "tower")),
            "template": template,
            "image_aspect_ratio": pad,
        }
    )
    prompter = make_prompter(spec)
    torch.manual_seed(0)
    vlm = assemble(spec, prompter)
    torch.manual_seed(1)
    for parameter in vlm.model.parameters():  # as far from zero as trained weights, so that pictures matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    for layer in (vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings()):
        old = layer.weight.data[: vlm.prompter.image_token_id]
        layer.weight.data[len(old) :] = old.mean(0)  # never the likeliest, as after assembling
    return vlm


def with_adapters(vlm: VLM) -> VLM:
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    tune = TuneRecipe.model_validate(
        {"llm": "lora", "llm_lora": lora, "vision_tower": "lora", "vision_lora": lora, "projector": "full"}
    )
    apply_tuning(vlm.model, tune, OptimRecipe(lr=1.0))
    torch.manual_seed(3)
    for name, parameter in vlm.model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    return vlm


CASES = [
    "byte",
    "legacy",
    "first",
    "llama",
    "vicuna",
    "tied",
    "lora",
    "sharded",
    "crop",
    "llama3_chat",
    "chatml",
    "plain",
]


def make_case(folder: Path, case: str) -> VLM:
    """A model of that kind; what it says before it is written is the truth."""
    kind = case if case in ("legacy", "first") else "byte"
    tiny.make_llm(folder / "llm", kind=kind, tie_word_embeddings=case == "tied", num_hidden_layers=1)
    if case == "llama":
        add_bos(folder / "llm")
    if case == "vicuna":
        as_vicuna(folder / "llm")
    template = case if case in TEMPLATES else "vicuna"
    vlm = built(folder, template, pad="crop" if case == "crop" else "pad")
    return with_adapters(vlm) if case == "lora" else vlm


def conversations(folder: Path) -> list[list[dict[str, Any]]]:
    """One picture, two pictures inside the text, none, and a second turn; as transformers' users write them."""
    tall, wide = str(folder / "tall.png"), str(folder / "wide.png")

    def picture(path: str) -> dict[str, str]:
        return {"type": "image", "path": path}

    def text(words: str) -> dict[str, str]:
        return {"type": "text", "text": words}

    def user(*parts: dict[str, str]) -> dict[str, Any]:
        return {"role": "user", "content": list(parts)}

    return [
        [user(picture(tall), text("What colour is this square?"))],
        [user(text("Compare "), picture(wide), text(" and "), picture(tall), text("."))],
        [user(text("What is red?"))],
        [
            user(picture(wide), text("What colour?")),
            {"role": "assistant", "content": [text("It is red.")]},
            user(text("Answer with it's letter directly.")),
        ],
    ]


def ours(messages: list[dict[str, Any]]) -> list[Message]:
    """The same conversation in our types: an image in front stands on a line of its own."""
    result = []
    for message in messages:
        words, images = "", []
        for number, part in enumerate(message["content"]):
            if part["type"] == "image":
                words += "<image>" + ("\n" if number == 0 else "")
                images.append(ImageRef(part["path"]))
            else:
                words += part["text"]
        result.append(Message(message["role"], interleave(words, images)))
    return result


def logits(vlm: VLM, encoded: Encoded) -> torch.Tensor:
    pixels = {"pixel_values": vlm.prompter.pixels(encoded.images)} if encoded.images else {}
    with torch.no_grad():
        result: torch.Tensor = vlm.model(input_ids=torch.from_numpy(encoded.ids)[None], **pixels).logits[0]
    return result


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Any], dict[str, Any]]:
    """Every case, saved; what we say before it is saved, and what transformers says in a process of its own."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("cases")
    for name, size in (("tall", (60, 90)), ("wide", (100, 40))):
        noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(len(name)))
        Image.fromarray(noise.to(torch.uint8).numpy()).save(folder / f"{name}.png")
    asked = conversations(folder)
    folders, said = {}, {}
    for case in CASES:
        vlm = make_case(folder / case, case)
        questions = [ours(messages) for messages in asked]
        encoded = [vlm.prompter.encode(messages) for messages in questions]
        said[case] = {
            "ids": [sample.ids.tolist() for sample in encoded],
            "logits": [logits(vlm, sample) for sample in encoded],
            "pixels": [vlm.prompter.pixels(sample.images) if sample.images else None for sample in encoded],
            "text": replies(vlm, questions, max_new_tokens=8, batch_size=1),
        }
        merge_adapters(vlm.model)
        shards = {"max_shard_size": "100KB"} if case == "sharded" else {}
        folders[case] = save(vlm, folder / case / "saved", **shards)
    (folder / "asked.json").write_text(
        json.dumps({"folders": list(map(str, folders.values())), "conversations": asked}), encoding="utf-8"
    )
    words = [sys.executable, "-c", ELSEWHERE, str(folder / "asked.json"), str(folder / "answers.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folders, said, dict(zip(CASES, json.loads((folder / "answers.json").read_text()), strict=True))


Elsewhere = tuple[dict[str, Path], dict[str, Any], dict[str, Any]]


@pytest.mark.parametrize("case", CASES)
def test_transformers_alone_says_the_same(elsewhere: Elsewhere, case: str) -> None:
    _, said, theirs = elsewhere
    assert theirs[case]["keys"] == {}
    assert theirs[case]["kind"] == ["LlavaProcessor", "LlavaForConditionalGeneration"]
    for number, answer in enumerate(theirs[case]["answers"]):
        assert answer["ids"] == said[case]["ids"][number]
        pixels = said[case]["pixels"][number]
        if pixels is None:
            assert answer["pixels"] is None
        else:
            torch.testing.assert_close(torch.tensor(answer["pixels"]), pixels.flatten(), rtol=0, atol=1e-6)
        truth = said[case]["logits"][number].flatten()
        torch.testing.assert_close(torch.tensor(answer["logits"]), truth, rtol=1e-5, atol=1e-5)
        assert answer["text"] == said[case]["text"][number]
    if case == "byte":  # random, but not deaf
        assert len(set(said[case]["text"])) > 2


@pytest.mark.parametrize("case", CASES)
def test_ours_says_the_same_bit_for_bit(elsewhere: Elsewhere, case: str) -> None:
    folders, said, _ = elsewhere
    vlm = load(folders[case], device="cpu")
    assert vlm.prompter.template.name == (case if case in TEMPLATES else "vicuna")
    for messages, ids, truth in zip(
        conversations(folders[case].parents[1]), *(said[case][n] for n in ("ids", "logits")), strict=True
    ):
        encoded = vlm.prompter.encode(ours(messages))
        assert encoded.ids.tolist() == ids
        if case == "lora" or len(ids) == 1:  # added in another order; one token: sums depend on places in memory
            torch.testing.assert_close(logits(vlm, encoded), truth, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(logits(vlm, encoded), truth)


FILES = {
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", ["byte", "tied", "lora"])
def test_the_files_and_names_of_the_hub(elsewhere: Elsewhere, case: str) -> None:
    folder = elsewhere[0][case]
    assert {file.name for file in folder.iterdir()} == FILES | {"model.safetensors"}
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        names, metadata = set(tensors.keys()), tensors.metadata()
    layer = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    layer += ["input_layernorm", "post_attention_layernorm"]
    text = {f"layers.0.{name}.weight" for name in layer} | {"embed_tokens.weight", "norm.weight"}
    wanted = {f"language_model.model.{name}" for name in text}
    wanted |= set() if case == "tied" else {"language_model.lm_head.weight"}
    wanted |= {f"multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    seeing = ["pre_layrnorm", "post_layernorm"]
    for number in range(3):
        parts = [f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")]
        parts += ["mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"]
        seeing += [f"encoder.layers.{number}.{name}" for name in parts]
    tower = {f"{name}.{kind}" for name in seeing for kind in ("weight", "bias")}
    tower |= {"embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"}
    assert names == wanted | {f"vision_tower.vision_model.{name}" for name in tower}
    assert metadata == {"format": "pt"}


def test_the_configuration_speaks_both_dialects(elsewhere: Elsewhere) -> None:
    folder = elsewhere[0]["byte"]
    config = read(folder, "config.json")
    assert config["model_type"] == "llava" and config["architectures"] == ["LlavaForConditionalGeneration"]
    for section in (config, config["text_config"], config["vision_config"]):
        assert section["dtype"] == section["torch_dtype"] == "float32"
    text = config["text_config"]
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == 10000.0
    assert config["image_token_index"] == load(folder, device="cpu").prompter.image_token_id
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    assert config["image_seq_length"] == 16 and text["vocab_size"] % 64 == 0
    assert not any(str(folder.parent) in file.read_text(encoding="utf-8") for file in folder.glob("*.json"))


def test_the_processor_counts_as_clip_does(elsewhere: Elsewhere) -> None:
    folder = elsewhere[0]["byte"]
    processor = read(folder, "processor_config.json")
    assert processor["processor_class"] == "LlavaProcessor" and processor["image_token"] == "<image>"
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (14, 1)
    assert processor["vision_feature_select_strategy"] == "default"
    image = read(folder, "preprocessor_config.json")
    assert image["do_pad"] is True and image["crop_size"] == {"height": 56, "width": 56}
    assert image["size"] == {"shortest_edge": 56}
    assert "do_pad" not in read(elsewhere[0]["crop"], "preprocessor_config.json")
    special = read(folder, "special_tokens_map.json")
    assert special == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert read(folder, "chat_template.json") == {"chat_template": template}
    assert read(folder, "tokenizer_config.json")["chat_template"] == template


@pytest.mark.parametrize("case", ["byte", "vicuna"])
def test_the_generation_config_only_says_where_to_stop(elsewhere: Elsewhere, case: str) -> None:
    written = read(elsewhere[0][case], "generation_config.json")
    written.pop("transformers_version", None)
    vlm = load(elsewhere[0][case], device="cpu")
    assert written == {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": vlm.prompter.pad_token_id}


def test_a_model_in_pieces(elsewhere: Elsewhere) -> None:
    folder = elsewhere[0]["sharded"]
    index = read(folder, "model.safetensors.index.json")
    whole = load_file(elsewhere[0]["byte"] / "model.safetensors")
    pieces = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    assert len(pieces) > 3
    assert index["weight_map"] == {name: file for file, tensors in pieces.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in whole.values())
    joined = {name: tensor for tensors in pieces.values() for name, tensor in tensors.items()}
    assert joined.keys() == whole.keys() and all(torch.equal(joined[name], whole[name]) for name in whole)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_is_recognised(tmp_path: Path, template: str) -> None:
    tiny.make_llm(tmp_path / "llm", num_hidden_layers=1)
    saved = save(built(tmp_path, template), tmp_path / "saved")
    prompter = load(saved, device="cpu").prompter
    question = [Message("user", (Text("What is red?"),))]
    assert (
        prompter.encode(question).ids.tolist()
        == load(saved, device="cpu", template=template).prompter.encode(question).ids.tolist()
    )
    # The two that write the same are told apart by nothing.
    assert prompter.template.name == ("chatml" if template == "qwen_chat" else template)


def test_the_end_of_a_template_ends_an_answer(tmp_path: Path) -> None:
    """<|eot_id|> is no end for the language model itself, but for every program that loads the export."""
    llm = tiny.make_llm(tmp_path / "llm", num_hidden_layers=1)
    tokenizer = tiny.make_tokenizer(extra=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"))
    tokenizer.save_pretrained(llm)
    folder = save(built(tmp_path, "llama3_chat"), tmp_path / "saved")
    ends = [tokenizer.convert_tokens_to_ids("</s>"), tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    assert read(folder, "generation_config.json")["eos_token_id"] == ends


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_number_format(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny.make_llm(tmp_path / "llm", num_hidden_layers=1)
    folder = save(built(tmp_path), tmp_path / "saved", dtype=dtype)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {dtype}
    name = str(dtype).removeprefix("torch.")
    config = read(folder, "config.json")
    assert {config[key] for key in ("dtype", "torch_dtype")} == {name}
    assert {config["text_config"]["dtype"], config["vision_config"]["torch_dtype"]} == {name}
    assert load(folder, device="cpu", dtype=name).model.dtype == dtype


def test_saved_again_it_is_the_same(elsewhere: Elsewhere, tmp_path: Path) -> None:
    for case in ("byte", "tied", "llama3_chat"):
        folder = elsewhere[0][case]
        again = save(load(folder, device="cpu"), tmp_path / case)
        names = sorted(file.name for file in again.iterdir())
        assert names == sorted(file.name for file in folder.iterdir())
        for name in names:
            if name == "tokenizer_config.json":  # in another order
                assert read(again, name) == read(folder, name)
            else:
                assert (again / name).read_bytes() == (folder / name).read_bytes(), (case, name)


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    tiny.make_llm(tmp_path / "llm", num_hidden_layers=1)
    vlm = built(tmp_path)
    before = {name: tensor.clone() for name, tensor in vlm.model.state_dict().items()}
    save(vlm, tmp_path / "saved", dtype=torch.bfloat16)
    after = vlm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)


def test_a_template_that_is_none_of_ours(elsewhere: Elsewhere, tmp_path: Path) -> None:
    vlm = load(elsewhere[0]["byte"], device="cpu")
    save(vlm, tmp_path / "saved")
    for name in ("chat_template.jinja", "chat_template.json"):
        (tmp_path / "saved" / name).unlink()
    settings = read(tmp_path / "saved", "tokenizer_config.json")
    for template, words in ((None, "has no chat template"), ("{{ messages[0]['content'] }}", "is none that Sightline")):
        settings["chat_template"] = template
        (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        with pytest.raises(ModelError, match=rf"{words}.*--prompt-template \(vicuna, "):
            load(tmp_path / "saved", device="cpu")
        assert load(tmp_path / "saved", device="cpu", template="plain").prompter.template.name == "plain"
