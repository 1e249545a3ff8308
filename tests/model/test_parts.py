"""XTuner's layout in memory: `chat LLM --visual-encoder V --llava DIR` is the model that was trained."""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import xtuner_like
from PIL import Image
from safetensors.torch import save_file
from xtuner_like import factors, merged, write_adapter, write_notes, write_projector

from sightline.errors import UserError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.flags import load_model, model_flags
from sightline.model.load import VLM
from sightline.model.save import save
from sightline.recipe import ModelRecipe
from sightline.types import ImageRef, ask

LLM_KINDS, TOWER_KINDS = ("q_proj", "up_proj", "lm_head"), ("v_proj", "fc1")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model and a tower; `trained`, what XTuner leaves of adapters on both; `whole`, with them merged."""
    folder = tmp_path_factory.mktemp("parts")
    tiny.make_llm(folder / "llm", intermediate_size=128)
    xtuner_like.as_transformers_4(tiny.make_tower(folder / "tower"))
    trained = folder / "trained"
    write_projector(trained / "projector", xtuner_like.projector(32, 64))
    for name, kinds in (("llm", LLM_KINDS), ("tower", TOWER_KINDS)):
        base = xtuner_like.weights(folder / name)
        lora = factors(base, *kinds)
        write_adapter(trained / ("llm_adapter" if name == "llm" else "visual_encoder_adapter"), lora)
        copy(folder / name, folder / f"whole_{name}", merged(base, lora))
    return folder


def copy(folder: Path, to: Path, weights: xtuner_like.Tensors) -> None:
    shutil.copytree(folder, to)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})


def loaded(*words: object) -> VLM:
    parser = argparse.ArgumentParser()
    model_flags(parser)
    return load_model(parser.parse_args([*map(str, words), "--device", "cpu"]))


def refusal(*words: object) -> str:
    with pytest.raises(UserError) as error:
        loaded(*words)
    assert "\n" not in str(error.value)
    return str(error.value)


@torch.inference_mode()
def logits(vlm: VLM) -> torch.Tensor:
    picture = ImageRef(tiny_picture())
    encoded = vlm.prompter.encode([ask("What colour is this square?", [picture])])
    pixels = vlm.prompter.pixel_values(vlm.prompter.pixels(encoded.images)).to(vlm.model.dtype)
    result: torch.Tensor = vlm.model(input_ids=torch.from_numpy(encoded.ids)[None], pixel_values=pixels).logits
    return result


def tiny_picture() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((80, 56)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def assembled(llm: Path, tower: Path, projector: Path) -> VLM:
    spec = ModelRecipe(
        llm=str(llm), vision_tower=str(tower), template="vicuna", system="", projector_from=str(projector)
    )
    return assemble(spec, make_prompter(spec))


def test_the_model_that_was_trained(parts: Path) -> None:
    trained = parts / "trained"
    vlm = loaded(
        *(parts / "llm", "--visual-encoder", parts / "tower", "--llava", trained, "--prompt-template", "vicuna")
    )
    expected = assembled(parts / "whole_llm", parts / "whole_tower", trained / "projector")
    torch.testing.assert_close(logits(vlm), logits(expected), rtol=1e-5, atol=1e-5)
    without = assembled(parts / "llm", parts / "tower", trained / "projector")
    assert (logits(vlm) - logits(without)).abs().max() > 0.01
    assert vlm.prompter.template == expected.prompter.template
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())


def test_a_folder_that_holds_everything_needs_no_flag(parts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(parts / "whole_llm", tmp_path / "all")
    shutil.copytree(parts / "whole_tower", folder / "visual_encoder")
    shutil.copytree(parts / "trained" / "projector", folder / "projector")
    expected = logits(assembled(parts / "whole_llm", parts / "whole_tower", folder / "projector"))
    for words in ([], ["--llava", folder]):
        assert torch.equal(logits(loaded(folder, *words, "--prompt-template", "vicuna")), expected)
    assert "leave out --visual-encoder" in refusal(folder, "--llava", folder, "--visual-encoder", parts / "tower")


def test_what_its_configuration_names(parts: Path, tmp_path: Path) -> None:
    trained = shutil.copytree(parts / "trained", tmp_path / "trained")
    write_notes(trained, parts / "llm", parts / "tower")
    expected = loaded(
        *(parts / "llm", "--visual-encoder", parts / "tower", "--llava", trained, "--prompt-template", "vicuna")
    )
    assert torch.equal(logits(loaded(trained)), logits(expected))


def test_a_number_format_and_a_layer(parts: Path) -> None:
    flags = ("--llava", parts / "trained", "--visual-encoder", parts / "tower", "--prompt-template", "vicuna")
    half = loaded(parts / "llm", *flags, "--torch-dtype", "bf16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    other = loaded(parts / "llm", *flags, "--visual-select-layer", "-1")
    assert other.model.config.vision_feature_layer == -1
    assert not torch.equal(logits(other), logits(loaded(parts / "llm", *flags)))


def test_four_bits(parts: Path) -> None:
    pytest.importorskip("bitsandbytes")
    flags = ("--llava", parts / "trained", "--visual-encoder", parts / "tower", "--prompt-template", "vicuna")
    quantised = loaded(parts / "llm", *flags, "--bits", "4")
    kinds = {type(layer).__name__ for layer in quantised.model.model.language_model.layers.modules()}
    assert "Linear4bit" in kinds and "Linear" not in kinds
    whole = logits(loaded(parts / "llm", *flags))
    assert 0 < (logits(quantised) - whole).std() < 0.5 * whole.std()
    assert "--bits 8 is for whole models" in refusal(parts / "llm", *flags, "--bits", "8")


def test_an_adapter_on_a_whole_model(parts: Path, tmp_path: Path) -> None:
    base = assembled(parts / "llm", parts / "tower", parts / "trained" / "projector")
    save(base, tmp_path / "hf")
    vlm = loaded(tmp_path / "hf", "--adapter", parts / "trained" / "llm_adapter")
    expected = assembled(parts / "whole_llm", parts / "tower", parts / "trained" / "projector")
    torch.testing.assert_close(logits(vlm), logits(expected), rtol=1e-5, atol=1e-5)
    assert "leave one of them out" in refusal(
        *(tmp_path / "hf", "--adapter", parts / "trained" / "llm_adapter", "--bits", "4")
    )


def test_an_adapter_beside_a_projector(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "trained" / "projector", tmp_path / "x" / "projector")
    flags = ("--visual-encoder", parts / "tower", "--prompt-template", "vicuna")
    adapter = ("--adapter", parts / "trained" / "llm_adapter")
    vlm = loaded(parts / "llm", "--llava", tmp_path / "x", *flags, *adapter)
    expected = assembled(parts / "whole_llm", parts / "tower", tmp_path / "x" / "projector")
    torch.testing.assert_close(logits(vlm), logits(expected), rtol=1e-5, atol=1e-5)
    assert "leave out --adapter" in refusal(parts / "llm", "--llava", parts / "trained", *flags, *adapter)


def test_what_is_missing_or_does_not_fit(parts: Path, tmp_path: Path) -> None:
    tower = ("--visual-encoder", parts / "tower")
    assert "holds no vision tower" in refusal(parts / "llm", "--llava", parts / "trained")
    assert "no chat template" in refusal(parts / "llm", "--llava", parts / "trained", *tower)
    assert "has no projector/" in refusal(parts / "llm", "--llava", parts / "tower", *tower)
    wide = tiny.make_llm(tmp_path / "wide", hidden_size=96)
    flags = (*tower, "--prompt-template", "vicuna")
    assert "does not fit this language model" in refusal(wide, "--llava", parts / "trained", *flags)
    trained = shutil.copytree(parts / "trained", tmp_path / "trained")
    shutil.rmtree(trained / "projector")
    write_projector(trained / "projector", xtuner_like.projector(32, 96))
    said = refusal(wide, "--llava", trained, *flags)
    assert "does not belong to this base model (lm_head is [448, 96], the adapter's is [448, 64])" in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alpha_pattern": {"q_proj": 3}}, "no plain LoRA: merge it first"),
        ({"peft_type": "IA3"}, "no plain LoRA"),
        ({"lora_alpha": None}, "is damaged"),
        ({"lora_alpha": float("nan")}, "is damaged"),
    ],
)
def test_adapters_of_other_kinds(parts: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    lora = factors(xtuner_like.weights(parts / "llm"), "q_proj")
    adapter = write_adapter(tmp_path / "adapter", lora, **changes)
    flags = ("--visual-encoder", parts / "tower", "--prompt-template", "vicuna", "--adapter", adapter)
    shutil.copytree(parts / "trained" / "projector", tmp_path / "x" / "projector")
    assert reason in refusal(parts / "llm", "--llava", tmp_path / "x", *flags)
