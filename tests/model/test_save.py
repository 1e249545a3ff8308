"""The files of an exported model, and what stands in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from exports import ROPE, built, make_case
from safetensors import safe_open
from safetensors.torch import load_file

from sightline.errors import ModelError
from sightline.files import appearing
from sightline.model.adapters import merge_adapters
from sightline.model.load import load
from sightline.model.save import save
from sightline.prompt.prompter import template_named
from sightline.prompt.templates import TEMPLATES
from sightline.types import Message, Text


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    folders = {}
    for case in ("byte", "tied", "lora", "crop", "vicuna", "rope", "llama3_chat", "sharded"):
        vlm = make_case(folder / case, case)
        merge_adapters(vlm.model)
        shards = {"max_shard_size": "100KB"} if case == "sharded" else {}
        folders[case] = save(vlm, folder / case / "saved", **shards)
    return folders


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
def test_the_files_and_names_of_the_hub(exported: dict[str, Path], case: str) -> None:
    folder = exported[case]
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


def test_the_configuration_speaks_both_dialects(exported: dict[str, Path]) -> None:
    folder = exported["byte"]
    config = read(folder, "config.json")
    assert config["model_type"] == "llava" and config["architectures"] == ["LlavaForConditionalGeneration"]
    for section in (config, config["text_config"], config["vision_config"]):
        assert section["dtype"] == section["torch_dtype"] == "float32"
    text = config["text_config"]
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == 10000.0
    assert "rope_scaling" not in text
    stretched = read(exported["rope"], "config.json")["text_config"]
    assert stretched["rope_scaling"] == ROPE and stretched["rope_theta"] == 5e5
    assert config["image_token_index"] == load(folder, device="cpu").prompter.image_token_id
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    assert config["image_seq_length"] == 16 and text["vocab_size"] % 64 == 0
    assert not any(str(folder.parent) in file.read_text(encoding="utf-8") for file in folder.glob("*.json"))


def test_the_processor_counts_as_clip_does(exported: dict[str, Path]) -> None:
    folder = exported["byte"]
    processor = read(folder, "processor_config.json")
    assert processor["processor_class"] == "LlavaProcessor" and processor["image_token"] == "<image>"
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (14, 1)
    assert processor["vision_feature_select_strategy"] == "default"
    image = read(folder, "preprocessor_config.json")
    assert image["do_pad"] is True and image["crop_size"] == {"height": 56, "width": 56}
    assert image["size"] == {"shortest_edge": 56}
    assert "do_pad" not in read(exported["crop"], "preprocessor_config.json")
    special = read(folder, "special_tokens_map.json")
    assert special == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert read(folder, "chat_template.json") == {"chat_template": template}
    assert read(folder, "tokenizer_config.json")["chat_template"] == template


@pytest.mark.parametrize("case", ["byte", "vicuna"])
def test_the_generation_config_only_says_where_to_stop(exported: dict[str, Path], case: str) -> None:
    written = read(exported[case], "generation_config.json")
    written.pop("transformers_version", None)
    vlm = load(exported[case], device="cpu")
    assert written == {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": vlm.prompter.pad_token_id}


def test_a_model_in_pieces(exported: dict[str, Path]) -> None:
    folder = exported["sharded"]
    index = read(folder, "model.safetensors.index.json")
    whole = load_file(exported["byte"] / "model.safetensors")
    pieces = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    assert len(pieces) > 3
    assert index["weight_map"] == {name: file for file, tensors in pieces.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in whole.values())
    joined = {name: tensor for tensors in pieces.values() for name, tensor in tensors.items()}
    assert joined.keys() == whole.keys() and all(torch.equal(joined[name], whole[name]) for name in whole)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_is_recognised(tmp_path: Path, template: str) -> None:
    tiny.make_llm(tmp_path / "llm", num_hidden_layers=1, extra=TEMPLATES[template].tokens)
    vlm = built(tmp_path, template)
    saved = save(vlm, tmp_path / "saved")
    prompter = load(saved, device="cpu").prompter
    question = [Message("user", (Text("What is red?"),))]
    assert (
        prompter.encode(question).ids.tolist()
        == load(saved, device="cpu", template=template).prompter.encode(question).ids.tolist()
    )
    assert prompter.template.name == template
    assert prompter.stop == vlm.prompter.stop


def test_the_name_of_a_template_is_no_more_than_a_hint(tmp_path: Path) -> None:
    """Who changes the chat template of an export gets what it writes; where two write the same, the name decides."""
    tiny.make_llm(tmp_path / "llm", num_hidden_layers=1, extra=TEMPLATES["qwen_chat"].tokens)
    saved = save(built(tmp_path, "qwen_chat"), tmp_path / "saved")
    assert load(saved, device="cpu").prompter.stop[1] == ("<|endoftext|>",)
    settings = read(saved, "tokenizer_config.json")
    for name, template in (("chatml", "chatml"), ("vicuna", "chatml"), ("no such", "chatml"), (None, "chatml")):
        settings["prompt_template"] = name
        (saved / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        assert load(saved, device="cpu").prompter.template.name == template
    again = save(load(saved, device="cpu", template="qwen_chat"), tmp_path / "again")
    assert read(again, "tokenizer_config.json")["prompt_template"] == "qwen_chat"


@pytest.mark.parametrize("system", ["", "You see."])
def test_the_system_prompt_of_a_recipe_comes_along(tmp_path: Path, system: str) -> None:
    tiny.make_llm(tmp_path / "llm", num_hidden_layers=1)
    vlm = built(tmp_path, "vicuna")
    vlm = replace(vlm, prompter=replace(vlm.prompter, template=template_named("vicuna", system=system)))
    saved = save(vlm, tmp_path / "saved")
    loaded = load(saved, device="cpu").prompter
    assert (loaded.template.name, loaded.template.default_system) == ("vicuna", system)
    assert loaded.tokenizer.decode(loaded.encode([Message("user", (Text("Hi"),))]).ids) == (
        f"<s>{system + ' ' if system else ''}USER: Hi ASSISTANT:"
    )


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


def test_saved_again_it_is_the_same(exported: dict[str, Path], tmp_path: Path) -> None:
    for case in ("byte", "tied", "llama3_chat", "rope"):
        folder = exported[case]
        again = save(load(folder, device="cpu"), tmp_path / case)
        names = sorted(file.name for file in again.iterdir())
        assert names == sorted(file.name for file in folder.iterdir())
        for name in names:
            if name.endswith(".json"):  # keys may stand in another order
                assert read(again, name) == read(folder, name)
            else:
                assert (again / name).read_bytes() == (folder / name).read_bytes(), (case, name)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_is_stopped_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept.txt").write_text("before")
    with pytest.raises(stop), appearing(tmp_path / "mine", needs=0) as partial:
        (partial / "half").write_bytes(b"half")
        raise stop
    assert [file.name for file in tmp_path.rglob("*")] == ["mine", "kept.txt"]


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    tiny.make_llm(tmp_path / "llm", num_hidden_layers=1)
    vlm = built(tmp_path)
    before = {name: tensor.clone() for name, tensor in vlm.model.state_dict().items()}
    save(vlm, tmp_path / "saved", dtype=torch.bfloat16)
    after = vlm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)


def test_a_template_that_is_none_of_ours(exported: dict[str, Path], tmp_path: Path) -> None:
    vlm = load(exported["byte"], device="cpu")
    save(vlm, tmp_path / "saved")
    for name in ("chat_template.jinja", "chat_template.json"):
        (tmp_path / "saved" / name).unlink()
    settings = read(tmp_path / "saved", "tokenizer_config.json")
    for template, words in ((None, "has no chat template"), ("{{ messages[0]['content'] }}", "leaves out an answer")):
        settings["chat_template"] = template
        (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        with pytest.raises(ModelError, match=rf"{words}.*--prompt-template \(vicuna, "):
            load(tmp_path / "saved", device="cpu")
        assert load(tmp_path / "saved", device="cpu", template="plain").prompter.template.name == "plain"


OWN = (
    "{% for m in messages %}{{ m['role'] + '> ' + m['content'] + (eos_token if m['role'] == 'assistant' else '\n') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant> ' }}{% endif %}"
)


def test_a_chat_template_that_has_no_name_here_is_read_as_it_is_and_saved_again(tmp_path: Path) -> None:
    llm = tiny.make_llm(tmp_path / "llm", num_hidden_layers=1)
    (llm / "chat_template.jinja").write_text(OWN, encoding="utf-8")
    saved = save(built(tmp_path, "auto"), tmp_path / "saved")
    for folder in (saved, save(load(saved, device="cpu"), tmp_path / "again")):
        prompter = load(folder, device="cpu").prompter
        assert prompter.template.name == "auto"
        asked = prompter.tokenizer.decode(prompter.encode([Message("user", (Text("Hi"),))]).ids)
        assert asked == "user> Hi\nassistant> "
