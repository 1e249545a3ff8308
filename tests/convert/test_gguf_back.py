"""GGUF files are read back and compared with the model that they were made of; what is wrong in them is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from gguf import GGUFReader
from llama_cpp import assembled
from safetensors.torch import load_file, save_file

from sightline import cli
from sightline.convert import gguf, gguf_back, hf
from sightline.convert.gguf_back import NEAR, prove, read_back
from sightline.convert.gguf_tokenizer import IMAGE_MARKS
from sightline.convert.source import Source, hub_shapes
from sightline.convert.tensors import stored
from sightline.errors import CheckpointError
from sightline.prompt.prompter import Prompter
from sightline.prompt.render import to_jinja
from sightline.prompt.templates import TEMPLATES

NAMES = ("llama", "llama3", "llama_biased", "mistral", "qwen2", "qwen3", "phi3", "phi3_long", "gemma")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tower: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "hf"
    assembled(folder, tiny.make_llm(folder.parent / "llm"), tower)
    return folder


def there(source: Source, out: Path, quantize: str = "f32", mend_clip: bool = False) -> Source:
    gguf.write(source, out, quantize=quantize, mend_clip=mend_clip)
    return read_back(source, out, quantize=quantize, mend_clip=mend_clip)


def same_but_what_is_left_out(before: Source, after: Source) -> None:
    """Every tensor that is in the files has come back, bit by bit."""
    left_out = set(before.tensors) - set(after.tensors)
    assert all("vision_model.encoder.layers." in name or "vision_model.head." in name for name in left_out)
    for name, tensor in after.tensors.items():
        if "post_layernorm" in name or "vision_model.head." in name:
            assert tensor.read().isnan().all()  # not in the files, and nothing may look at it
        elif "gemma" in before.config.text_config.model_type and name.endswith("norm.weight"):
            assert torch.allclose(tensor.read(), before.tensors[name].read(), atol=1e-6)  # 1 + w, and back
        else:
            assert torch.equal(tensor.read(), before.tensors[name].read()), name


@pytest.mark.parametrize("name", NAMES)
def test_families(tmp_path: Path, tower: Path, name: str) -> None:
    assembled(tmp_path / "hf", families.make_family(tmp_path / "llm", families.LLMS[name]), tower)
    source = hf.read(tmp_path / "hf")
    same_but_what_is_left_out(source, there(source, tmp_path / "gguf"))
    proof = prove(source, source, tmp_path / "gguf", quantize="f32", mend_clip=False)
    assert proof.largest_difference <= 1e-5 * proof.spread and proof.positions > 16


@pytest.mark.parametrize(
    ("tower", "spec"),
    [
        ("clip", {"vision_feature_layer": -1}),
        ("clip", {"vision_feature_layer": 1}),
        ("siglip", {"vision_feature_layer": -2}),
        ("siglip", {"vision_feature_layer": -1}),
        ("clip", {"next": True, "grid_pinpoints": [[56, 112], [112, 56]]}),
    ],
)
@pytest.mark.parametrize("mend_clip", [False, True])
def test_towers_and_layers(tmp_path: Path, tower: str, spec: dict[str, Any], mend_clip: bool) -> None:
    made = families.make_tower(tmp_path / "tower", tower)
    assembled(tmp_path / "hf", tiny.make_llm(tmp_path / "llm", tie_word_embeddings=True), made, **spec)
    source = hf.read(tmp_path / "hf")
    same_but_what_is_left_out(source, there(source, tmp_path / "gguf", mend_clip=mend_clip))
    proof = prove(source, source, tmp_path / "gguf", quantize="f32", mend_clip=mend_clip)
    assert proof.largest_difference <= 1e-5 * proof.spread


@pytest.mark.parametrize(("quantize", "least"), [("f16", 1e-4), ("bf16", 1e-3), ("q8_0", 1e-3)])
def test_formats_differ_no_more_than_they_must(hub: Path, tmp_path: Path, quantize: str, least: float) -> None:
    source = hf.read(hub)
    gguf.write(source, tmp_path / "gguf", quantize=quantize)
    proof = prove(source, source, tmp_path / "gguf", quantize=quantize, mend_clip=False)
    assert least < proof.largest_difference / proof.spread < NEAR[quantize] / 2


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory, tower: Path) -> Path:
    """A model whose answers small changes turn over, as those of large random ones: every layer doubles differences."""
    folder = tmp_path_factory.mktemp("touchy")
    llm = tiny.make_llm(folder / "llm", num_hidden_layers=8)
    weights = load_file(llm / "model.safetensors")
    for name, weight in weights.items():
        if "layers" in name and weight.ndim > 1:
            weight *= 12
    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})
    assembled(folder / "hf", llm, tower)
    return folder / "hf"


def test_a_model_that_rounding_turns_over_is_not_refused(touchy: Path, tmp_path: Path) -> None:
    source = hf.read(touchy)
    gguf.write(source, tmp_path / "gguf", quantize="f16")
    proof = prove(source, source, tmp_path / "gguf", quantize="f16", mend_clip=False)
    assert proof.largest_difference > NEAR["f16"] * proof.spread, "the usual tolerance would refuse it"


def test_a_wrong_export_of_it_is(touchy: Path, tmp_path: Path) -> None:
    source = hf.read(touchy)
    gguf.write(source, tmp_path / "gguf", quantize="f16")
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    planted = {**source.tensors, name: source.tensors[name].then(lambda weight: weight.roll(1, 0))}
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj\.weight has other numbers"):
        prove(source, replace(source, tensors=planted), tmp_path / "gguf", quantize="f16", mend_clip=False)


def test_wrong_logits_are_refused_whatever_rounding_does(
    touchy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted where no number of a tensor is wrong: the file's positions turn at another pace."""
    source = hf.read(touchy)
    gguf.write(source, tmp_path / "gguf", quantize="f16")

    def slower(config: Any, file: Any) -> None:
        config.rope_parameters = {**config.rope_parameters, "rope_theta": 20.0}

    monkeypatch.setattr(gguf_back, "_take_rope", slower)
    with pytest.raises(CheckpointError, match="answers otherwise than"):
        prove(source, source, tmp_path / "gguf", quantize="f16", mend_clip=False)


def test_a_model_in_memory_stays_as_it_is(hub: Path, tmp_path: Path) -> None:
    """Tensors of a run are not read anew each time."""
    source = hf.read(hub)
    kept = {name: tensor.read() for name, tensor in source.tensors.items()}
    source = replace(source, tensors={name: stored(tensor.clone()) for name, tensor in kept.items()})
    gguf.write(source, tmp_path / "gguf", quantize="q8_0")
    prove(source, source, tmp_path / "gguf", quantize="q8_0", mend_clip=False)
    assert all(torch.equal(source.tensors[name].read(), tensor) for name, tensor in kept.items())


def test_a_projector_without_biases(hub: Path, tmp_path: Path) -> None:
    source = hf.read(hub)
    source.config.multimodal_projector_bias = False
    tensors = {name: tensor for name, tensor in source.tensors.items() if "linear_" not in name or "weight" in name}
    source = replace(source, tensors=tensors)
    back = there(source, tmp_path / "gguf")
    assert not back.tensors["multi_modal_projector.linear_1.bias"].read().any()
    assert prove(source, source, tmp_path / "gguf", quantize="f32", mend_clip=False).largest_difference < 1e-6


def opened(folder: Path, file: str) -> GGUFReader:
    return GGUFReader(next(folder.glob(f"{file}-*.gguf")), "r+")


def cleared(file: str, name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (tensor,) = (tensor for tensor in opened(folder, file).tensors if tensor.name == name)
        tensor.data[...] = 0

    return change


def exchanged(file: str, one: str, other: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = {tensor.name: tensor.data for tensor in opened(folder, file).tensors}
        kept = data[one].copy()
        data[one][...] = data[other]
        data[other][...] = kept

    return change


def another(file: str, key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        field = opened(folder, file).fields[key]
        field.parts[field.data[0]][0] = value

    return change


def cut(folder: Path) -> None:
    file = next(folder.glob("model-*.gguf"))
    file.write_bytes(file.read_bytes()[:2000])


def other_rows(folder: Path) -> None:
    """As if the rows of each head had not been put in pairs."""
    (tensor,) = (tensor for tensor in opened(folder, "model").tensors if tensor.name == "blk.0.attn_q.weight")
    tensor.data[...] = tensor.data.reshape(4, 8, 2, -1).swapaxes(1, 2).reshape(tensor.data.shape).copy()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a matrix": (cleared("model", "blk.1.ffn_down.weight"), "has other numbers"),
    "a norm": (cleared("model", "output_norm.weight"), "has other numbers"),
    "rows": (other_rows, "has other numbers"),
    "the projector": (cleared("mmproj", "mm.2.weight"), "has other numbers"),
    "layers": (exchanged("mmproj", "v.blk.0.ffn_up.weight", "v.blk.1.ffn_up.weight"), "has other numbers"),
    "positions": (cleared("mmproj", "v.position_embd.weight"), "has other numbers"),
    "a size": (another("model", "llama.attention.head_count", 2), "llama.attention.head_count is not what was meant"),
    "angles": (another("model", "llama.rope.freq_base", 9e3), "llama.rope.freq_base is not what was meant"),
    "a token": (another("model", "tokenizer.ggml.eos_token_id", 1), "eos_token_id is not what was meant"),
    "the layer": (another("mmproj", "clip.vision.feature_layer", 1), "feature_layer is not what was meant"),
    "cut": (cut, "cannot be read back"),
}


@pytest.mark.parametrize("quantize", ["f32", "q8_0"])
@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_is_found(
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    quantize: str,
) -> None:
    change, reason = DAMAGE[what]
    write = gguf.write

    def write_wrongly(source: Source, out: Path, finish: Callable[[Path], None], **options: Any) -> None:
        def finish_wrongly(folder: Path) -> None:
            change(folder)
            finish(folder)

        write(source, out, finish=finish_wrongly, **options)

    monkeypatch.setattr(gguf, "write", write_wrongly)
    convert = ["convert", str(hub), str(tmp_path / "out"), "--to", "gguf", "--quantize", quantize]
    assert cli.main(convert) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and reason in said[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["a matrix", "a norm", "rows", "the projector", "layers"])
def test_the_answer_is_another_one(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """By logits alone, which q8_0 changes by half of their spread at most."""
    source = hf.read(hub)
    gguf.write(source, tmp_path / "gguf", quantize="f32")
    DAMAGE[what][0](tmp_path / "gguf")
    monkeypatch.setattr(gguf_back, "_check_numbers", lambda *_: None)
    monkeypatch.setitem(NEAR, "f32", NEAR["q8_0"])
    with pytest.raises(CheckpointError, match="answers otherwise"):
        prove(source, source, tmp_path / "gguf", quantize="f32", mend_clip=False)


def test_tensors_that_lack_or_are_too_many(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hf.read(hub)
    gguf.write(source, tmp_path / "gguf", quantize="f32")
    fewer = {name: shape for name, shape in hub_shapes(source.config).items() if "lm_head" not in name}
    fewer = {name: shape for name, shape in fewer.items() if "vision_model.encoder.layers.2." not in name}
    with monkeypatch.context() as patched:
        patched.setattr(gguf_back, "hub_shapes", lambda config: fewer)
        with pytest.raises(CheckpointError, match=r"1 tensors too many, such as output.weight"):
            read_back(source, tmp_path / "gguf", quantize="f32", mend_clip=False)
    more = {"language_model.model.layers.0.self_attn.q_proj.bias": (64,)}
    monkeypatch.setattr(gguf_back, "hub_shapes", lambda config: hub_shapes(config) | more)
    with pytest.raises(CheckpointError, match=r"lacks the tensor blk.0.attn_q.bias"):
        read_back(source, tmp_path / "gguf", quantize="f32", mend_clip=False)


def test_the_command_says_and_keeps_the_figure(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert = ["convert", str(hub), str(tmp_path / "out"), "--to", "gguf", "--quantize", "q8_0", "--mend-clip"]
    assert cli.main(convert) == 0
    kept = json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))
    assert kept["made_from"] == str(hub) and 0 < kept["largest_difference"] < NEAR["q8_0"] * kept["spread"]
    assert f"differ by at most {kept['largest_difference']:.2g}" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*convert[:2], str(tmp_path / "unproven"), *convert[3:], "--no-verify"]) == 0
    assert not (tmp_path / "unproven" / "conversion.json").exists()


@pytest.mark.parametrize("quantize", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_before_it_is_written(hub: Path, tmp_path: Path, dtype: str, quantize: str) -> None:
    """f32 holds all numbers of bfloat16, but they are not those of the source any more."""
    flags = ["--to", "gguf", "--dtype", dtype, "--quantize", quantize]
    assert cli.main(["convert", str(hub), str(tmp_path / "out"), *flags]) == 0


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_is_written_as_it_is(tmp_path: Path, name: str) -> None:
    template = TEMPLATES[name]
    tokenizer = tiny.make_tokenizer(extra=("<image>", *template.tokens))
    prompter = Prompter(tokenizer, template, image_processor=None, tokens_per_image=16)
    right = to_jinja(template, bos="<s>", eos="</s>", marks=IMAGE_MARKS)
    gguf_back._check_prompt({"tokenizer.chat_template": right}, prompter, tmp_path)
    if not template.images_only:
        with pytest.raises(CheckpointError, match="its chat template writes"):
            gguf_back._check_prompt({"tokenizer.chat_template": right + "!"}, prompter, tmp_path)
