"""Settings of strangers' model folders: each ends in one line that names it, before anything is built of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from sightline.convert.anything import read
from sightline.convert.verify import logits, to_vlm
from sightline.errors import ModelError
from sightline.model import foreign
from sightline.model.batched import replies
from sightline.model.foreign import check_fits, open_config, open_fast_tokenizer, open_processor, open_tokenizer
from sightline.model.generate import Sampling, reply
from sightline.model.load import load
from sightline.types import ask

CONFIG, IMAGES = "config.json", "preprocessor_config.json"
TOKENIZER, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"


def bomb(steps: int) -> dict[str, Any]:
    """A normalizer that makes a thousand letters of each, several times over."""
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    return {"type": "Sequence", "normalizers": [replace] * steps}


def put(value: Any, at: str, content: dict[str, Any]) -> None:
    *above, last = at.split(".")
    for key in above:
        content = content.setdefault(key, {})
    content[last] = value


@pytest.mark.parametrize(
    ("file", "at", "value", "said"),
    [
        (CONFIG, "attn_implementation", "someone/kernel", "someone/kernel"),
        (CONFIG, "text_config.attn_implementation", "someone/kernel:fn", "text_config.attn_implementation"),
        (CONFIG, "vision_config._attn_implementation", {"": "a/b"}, "vision_config._attn_implementation"),
        (CONFIG, "text_config._attn_implementation_internal", "a/b", "text_config._attn_implementation_internal"),
        (CONFIG, "vision_config.patch_size", 0, "patch_size 0"),
        (CONFIG, "vision_config.patch_size", [14, 14], "not square"),
        (CONFIG, "vision_config.image_size", [56, 56], "not square"),
        (CONFIG, "vision_config.image_size", 0, "pictures of 0 px"),
        (CONFIG, "text_config.num_labels", 10**8, "text_config.num_labels 100000000"),
        (CONFIG, "projector_depth", 10**9, "projector_depth 1000000000, no number from 1 to 4"),
        (CONFIG, "vision_config.patch_size", "x", "patch_size 'x'"),
        (CONFIG, "vision_config.image_size", 56_000, "16000000 patches; at most 65536"),
        (CONFIG, "vision_config.image_size", 56 * 40, "tower takes 3 x 2240"),
        (CONFIG, "text_config.num_hidden_layers", 10**7, "--raise-limit layers=10000000"),
        (CONFIG, "text_config.num_hidden_layers", 90, "do not fit"),
        (CONFIG, "text_config.vocab_size", 10**8, "vocab_size 100000000"),
        (CONFIG, "text_config.hidden_size", -64, "hidden_size -64"),
        (CONFIG, "text_config.rms_norm_eps", float("nan"), "rms_norm_eps nan"),
        (CONFIG, "text_config.rope_theta", float("inf"), "rope_theta inf"),
        (CONFIG, "quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "few bits"),
        (CONFIG, "vision_feature_layer", 99, "99"),
        (CONFIG, "vision_feature_layer", "last", "last"),
        (IMAGES, "size", {"shortest_edge": 16_384}, "size.shortest_edge: 16384, no side of 1 to 4096 pixels"),
        (IMAGES, "image_mean", [float("nan")] * 3, "image_mean: (nan, nan, nan)"),
        (IMAGES, "image_mean", [], "image_mean: ()"),
        (IMAGES, "image_mean", [{}, 1, 2], "image_mean"),
        (IMAGES, "image_std", [0, 0, 0], "image_std: (0, 0, 0)"),
        (IMAGES, "resample", 99, "resample"),
        (IMAGES, "crop_size", {"height": -1, "width": -1}, "crop_size"),
        (IMAGES, "crop_size", "large", "large"),
        (IMAGES, "crop_size", {"height": 28, "width": 28}, "makes images of 3 x 28 x 28"),
        (IMAGES, "size", {"shortest_edge": 10**6}, "size.shortest_edge: 1000000"),
        (IMAGES, "size", [], "cannot load"),
        (IMAGES, "rescale_factor", "x", "rescale_factor"),
        (TOKENIZER, "chat_template", 5, "chat_template: 5"),
        (TOKENIZER, "chat_template", "{% if %}", "chat template"),
        (TOKENIZER, "chat_template", "{{ nothing.there }}", "chat template"),
        (TOKENIZER, "model_max_length", {}, "model_max_length: {}"),
        (TOKENIZER, "extra_special_tokens", [f"<{n}>" for n in range(30_000)], "adds 30000 tokens; at most 20000"),
        (SPECIAL, "unk_token", {}, "unk_token: {}"),
        (SPECIAL, "eos_token", ["</s>"], "eos_token"),
        ("tokenizer.json", "normalizer", bomb(2), "1e+06 times as long"),
        ("tokenizer.json", "normalizer", bomb(4), "1e+12 times as long"),
        ("tokenizer.json", "decoder", {"type": "Sequence", "decoders": bomb(3)["normalizers"]}, "1e+09 times"),
    ],
)
def test_a_setting_that_no_model_has(
    world: Path, tmp_path: Path, file: str, at: str, value: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(world / "run" / "hf", model)
    (model / "chat_template.jinja").unlink()
    content = json.loads((model / file).read_text()) if (model / file).exists() else {}
    put(value, at, content)
    (model / file).write_text(json.dumps(content))
    begun = time.monotonic()
    with pytest.raises(ModelError) as error:
        load(model, device="cpu")
    message = str(error.value)
    assert said in message and "model" in message
    assert message.isprintable() and len(message) < 900
    assert time.monotonic() - begun < 60, "it would not end, or fill the memory"


def changed_tokenizer(world: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(world / "run" / "hf", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def added(number: int) -> dict[str, Any]:
    kinds = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": 9_000 + number, "content": f"<{number}>", "special": True, **kinds}


HUNDRED_THOUSAND = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 100_000
FRAME = {
    "type": "TemplateProcessing",
    "pair": [],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["s"]}},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["added_tokens"].extend(map(added, range(100_000))), r"adds 100\d{3} tokens; at most 20000"),
        (
            lambda c: c.update(post_processor=FRAME | {"single": HUNDRED_THOUSAND}),
            r"adds 100\d{3} tokens; at most 20000",
        ),
    ],
    ids=["added", "around each text"],
)
def test_tokens_that_no_tokenizer_has(
    world: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        open_tokenizer(changed_tokenizer(world, tmp_path / "model", change))


def test_tokens_that_the_model_does_not_have(world: Path, tmp_path: Path) -> None:
    def beyond(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        words.update({word: number + 5_000 for word, number in words.items() if number >= 259})

    model = changed_tokenizer(world, tmp_path / "model", beyond)
    with pytest.raises(ModelError, match=r"gives token 5\d{3}, and the language model has embeddings for \d+"):
        "".join(reply(load(model, device="cpu"), (ask("What colour is this square?"),)))
    with pytest.raises(ModelError, match="has embeddings for"):
        logits(to_vlm(read(model), torch.float32))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(decoder=None),
        lambda content: content["model"]["vocab"].update(zz=4_000_000_000),
    ],
    ids=["no decoder", "a number"],
)
def test_an_end_that_a_tokenizer_cannot_be_told(
    world: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    vlm = load(changed_tokenizer(world, tmp_path / "model", change), device="cpu")
    with pytest.raises(ModelError, match="cannot be told to end an answer at '中' "):
        "".join(reply(vlm, (ask("What?"),), Sampling(max_new_tokens=3, stop=("中",))))


def test_a_library_that_gives_up_says_nothing_of_its_own(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    model = changed_tokenizer(world, tmp_path / "model", lambda content: content.update(normalizer=damaged))
    with pytest.raises(ModelError, match="cannot load"):
        open_tokenizer(model)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("scale", [{"rescale_factor": 1.0}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_colours_of_other_scales_pass(tmp_path: Path, scale: dict[str, Any]) -> None:
    folder = tiny.make_tower(tmp_path)
    mean = [1.0, 0.9, 0.8] if scale.get("rescale_factor", 1.0) < 1 else [122.77, 116.75, 104.09]
    settings = json.loads((folder / IMAGES).read_text()) | {"image_mean": mean, **scale}
    (folder / IMAGES).write_text(json.dumps(settings))
    assert list(open_processor(folder).image_mean) == mean


def test_a_processor_that_leaves_images_oblong(world: Path, tmp_path: Path) -> None:
    """Which is not seen by a square one."""
    model = tmp_path / "model"
    shutil.copytree(world / "run" / "hf", model)
    settings = json.loads((model / IMAGES).read_text()) | {"do_center_crop": False, "do_pad": False}
    (model / IMAGES).write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="makes images of 3 x 56 x 84, and its vision tower takes 3 x 56 x 56"):
        load(model, device="cpu")


def test_where_a_tokenizer_panics_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular expression that gives up: tokenizers ends the thread, and not with an Exception of Python."""
    folder = tiny.make_llm(tmp_path / "llm")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"looks for '\(a\+\)\+\$' in texts: a group that is repeated"):
        open_tokenizer(folder)
    monkeypatch.setattr(foreign, "check_patterns", lambda state, name: None)
    with pytest.raises(ModelError, match=r"fails on a short text: .*retry-limit"):
        open_tokenizer(folder)


@pytest.mark.parametrize("opened", [open_tokenizer, open_fast_tokenizer])
def test_a_large_tokenizer_passes(tmp_path: Path, opened: Any) -> None:
    """260,000 entries and 300 additional tokens, as Gemma's and Llama-3's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{number}": number for number in range(260_000)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", eos_token="w1")
    fast.add_tokens([f"<|reserved_{number}|>" for number in range(300)], special_tokens=True)
    fast.save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    assert len(opened(tmp_path)) == 260_300


def test_what_a_forward_pass_gives_is_not_for_a_folder_to_say(world: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(world / "run" / "hf", model)
    content = json.loads((model / CONFIG).read_text())
    for section in (content, content["text_config"], content["vision_config"]):
        section |= {"return_dict": False, "output_attentions": True, "output_hidden_states": True}
    (model / CONFIG).write_text(json.dumps(content))
    question = [[ask("What is it?")]]
    answers = [
        replies(load(place, device="cpu"), question, max_new_tokens=5, batch_size=1)
        for place in (model, world / "run" / "hf")
    ]
    assert answers[0] == answers[1]


def test_a_model_and_an_adapter_in_one_folder(world: Path, tmp_path: Path) -> None:
    """transformers would load the adapter on the base that it names, and our converter the model."""
    model = tmp_path / "model"
    shutil.copytree(world / "run" / "hf", model)
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y"}))
    for opened in (load, read):
        with pytest.raises(ModelError, match=r"holds a model .* and an adapter"):
            opened(model)


def test_a_file_beside_the_weights_that_is_too_large(world: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(world / "run" / "hf", model)
    with (model / "chat_template.jinja").open("r+b") as file:
        file.truncate(400_000_000)
    with pytest.raises(ModelError, match=r"400 MB; at most 256 are taken, .*--raise-limit settings_megabytes=400"):
        open_tokenizer(model)


def test_a_configuration_far_larger_than_its_weights(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 64}
    LlamaForCausalLM(LlamaConfig(**small, num_hidden_layers=2)).save_pretrained(tmp_path)
    grown = LlamaConfig(**{**small, "hidden_size": 65_536, "intermediate_size": 65_536}, num_hidden_layers=8)
    with pytest.raises(ModelError, match=r"240\.\d billion numbers, and the weights there are 0\.00 GB"):
        check_fits(tmp_path, lambda: LlamaForCausalLM(grown))
    check_fits(tmp_path, lambda: LlamaForCausalLM(LlamaConfig(**small, num_hidden_layers=2)))


@pytest.mark.parametrize(
    "name", ["falcon_mamba", "gemma3", "gpt2", "llama4", "qwen2_5_vl", "phi3", "siglip2", "dinov2"]
)
def test_ordinary_configurations_pass(tmp_path: Path, name: str) -> None:
    config: PreTrainedConfig = AutoConfig.for_model(name)
    config.save_pretrained(tmp_path)
    assert open_config(tmp_path).model_type == name
