"""The folder that llama.cpp and Ollama read: what is in it, how it comes into being, and what is refused."""

from __future__ import annotations

import builtins
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from llama_cpp import assembled, serving

from sightline.convert import gguf, hf
from sightline.convert.modelfile import go_template
from sightline.convert.source import Source
from sightline.convert.tensors import Stored
from sightline.errors import CheckpointError, MissingExtra, ModelError
from sightline.prompt.templates import TEMPLATES


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "My LLaVA-Phi3"
    assembled(folder, tiny.make_llm(folder.parent / "llm"), tiny.make_tower(folder.parent / "tower"))
    return folder


@pytest.fixture
def source(hub: Path) -> Source:
    return hf.read(hub)


def kinds(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}


@pytest.mark.parametrize(
    ("quantize", "matrix", "tower"),
    [("f32", "F32", "f32"), ("f16", "F16", "f16"), ("bf16", "BF16", "f16"), ("q8_0", "Q8_0", "f16")],
)
def test_files_and_formats(source: Source, tmp_path: Path, quantize: str, matrix: str, tower: str) -> None:
    out = tmp_path / "new" / "gguf"
    gguf.write(source, out, quantize=quantize)
    assert sorted(path.name for path in out.iterdir()) == [
        "Modelfile",
        f"mmproj-{tower}.gguf",
        f"model-{quantize}.gguf",
    ]
    found = kinds(out / f"model-{quantize}.gguf")
    assert {found.pop(name) for name in list(found) if name.endswith("norm.weight")} == {"F32"}
    assert set(found.values()) == {matrix}
    with serving(out) as server:
        assert not server.log_probs("<s>USER: hi ASSISTANT:", 576).isnan().all()


def test_the_weights_are_those_of_the_model(source: Source, tmp_path: Path) -> None:
    """Bit by bit in their own format; in q8_0 within half a step of 1/127 of the largest in a block of 32.

    And what is lost by writing that step, of which a number may be 127, in float16.
    """
    gguf.write(source, tmp_path / "a", quantize="f32")
    name, weights = "blk.1.ffn_down.weight", source.tensors["language_model.model.layers.1.mlp.down_proj.weight"].read()
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "a" / "model-f32.gguf").tensors}
    assert torch.equal(torch.from_numpy(found[name].data.copy()), weights)
    gguf.write(source, tmp_path / "b", quantize="q8_0")
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "b" / "model-q8_0.gguf").tensors}
    near = torch.from_numpy(dequantize(found[name].data, found[name].tensor_type)).reshape(weights.shape)
    blocks = weights.reshape(-1, 32)
    step = blocks.abs().amax(1, keepdim=True) / 127
    assert ((near.reshape(-1, 32) - blocks).abs() <= (0.5 + 127 / 2048) * step).all() and not torch.equal(near, weights)


def test_a_name_is_no_promise(source: Source, hub: Path, tmp_path: Path) -> None:
    """llama.cpp refuses or changes a model with `phi-3` in its name, where its tokens are not Phi-3's."""
    gguf.write(source, tmp_path / "out")
    reader = GGUFReader(tmp_path / "out" / "model-f16.gguf")
    assert reader.get_field("general.name").contents() == "My LLaVA-phi 3"
    assert gguf.model_name(replace(source, path=hub / "run" / "hf")) == "run"


def test_modelfile(source: Source, tmp_path: Path) -> None:
    gguf.write(source, tmp_path / "out", quantize="q8_0")
    assert (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8") == (
        "FROM ./model-q8_0.gguf\n"
        "FROM ./mmproj-f16.gguf\n"
        'TEMPLATE """{{ $behind := "" }}{{ range .Messages }}{{ if eq .Role "system" }}{{ .Content }} '
        '{{ else if eq .Role "user" }}USER: {{ .Content }} ASSISTANT:{{ else }} {{ .Content }}</s>{{ end }}'
        '{{ $behind = .Role }}{{ end }}"""\n'
        'SYSTEM """A chat between a curious user and an artificial intelligence assistant. The assistant gives '
        'helpful, detailed, and polite answers to the user\'s questions."""\n'
        'PARAMETER stop "</s>"\n'
    )


def test_templates_in_go() -> None:
    """All known templates rendered the same as ours in Go's own text/template 1.27, by hand; these two as examples."""
    assert go_template(TEMPLATES["chatml"], bos="", eos="</s>") == (
        '{{ $behind := "" }}{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>'
        '\n{{ else if eq .Role "user" }}{{ if eq $behind "assistant" }}\n{{ end }}<|im_start|>user\n{{ .Content }}'
        "<|im_end|>\n<|im_start|>assistant\n{{ else }}{{ .Content }}<|im_end|>{{ end }}{{ $behind = .Role }}{{ end }}"
    )
    assert go_template(TEMPLATES["llama_2"], bos="<s>", eos="</s>") == (
        '{{ $behind := "" }}{{ range .Messages }}{{ if eq .Role "system" }}[INST] <<SYS>>\n{{ .Content }}\n<</SYS>>\n\n'
        '{{ else if eq .Role "user" }}{{ if eq $behind "assistant" }}<s>{{ end }}{{ if eq $behind "system" }}'
        "{{ .Content }} [/INST]{{ else }}[INST] {{ .Content }} [/INST]{{ end }}"
        "{{ else }} {{ .Content }} </s>{{ end }}{{ $behind = .Role }}{{ end }}"
    )
    # Ollama writes the first token; `auto` has it as it is, and a system prompt of its own behind it may.
    begun = replace(TEMPLATES["vicuna"], begin="<s>Hello. ")
    assert go_template(begun, bos="<s>", eos="</s>").startswith('{{ $behind := "" }}Hello. {{ range')
    with pytest.raises(ModelError, match="counts its turns"):
        go_template(TEMPLATES["chatglm2"], bos="", eos="")
    with pytest.raises(ModelError, match="which a Modelfile cannot"):
        go_template(replace(TEMPLATES["vicuna"], default_system='Say """'), bos="", eos="")


def read_by(source: Source, read: Any) -> Source:
    """The same, whose tensors are read in another way."""
    tensors = {
        name: Stored(tensor.shape, tensor.dtype, lambda tensor=tensor: read(tensor))  # type: ignore[misc]
        for name, tensor in source.tensors.items()
    }
    return replace(source, tensors=tensors)


def test_one_tensor_at_a_time_and_nothing_before_the_end(source: Source, tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0

    def read(tensor: Stored) -> torch.Tensor:
        nonlocal most
        assert not (tmp_path / "out").exists()
        result = tensor.read().clone()
        alive.add(id(result))
        weakref.finalize(result, alive.discard, id(result))
        most = max(most, len(alive))
        return result

    gguf.write(read_by(source, read), tmp_path / "out", quantize="q8_0")
    assert most == 1 and (tmp_path / "out" / "Modelfile").is_file()


def test_a_full_disk_leaves_nothing(source: Source, tmp_path: Path) -> None:
    def read(tensor: Stored) -> torch.Tensor:
        if len(tensor.shape) == 4:  # the patches, in the second file
            raise OSError(28, "No space left on device")
        return tensor.read()

    with pytest.raises(CheckpointError, match="no space left"):
        gguf.write(read_by(source, read), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_float16_cannot_hold(source: Source, tmp_path: Path) -> None:
    large = read_by(source, lambda tensor: tensor.read() * 1e6)
    with pytest.raises(ModelError, match=r"token_embd.weight has numbers that float16 cannot hold|output.weight"):
        gguf.write(large, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_told_in_a_line_with_a_way_out(hub: Path, tmp_path: Path) -> None:
    tower = families.make_tower(tmp_path / "tower", "dinov2")
    assembled(tmp_path / "hf", tiny.make_llm(tmp_path / "llm"), tower)
    with pytest.raises(ModelError, match=r"^llama.cpp computes CLIP and SigLIP.*; huggingface holds such a model$"):
        gguf.write(hf.read(tmp_path / "hf"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"q4_k_m.*choose f32, f16, bf16, q8_0"):
        gguf.write(source, tmp_path / "out", quantize="q4_k_m")


def test_without_the_package(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return found(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'sightline-vlm\[gguf\]'"):
        gguf.write(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_llama_cpp_does_otherwise_is_said(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf.write(source, tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    assert "at its neighbour's place" in said and "middle of a picture" not in said
