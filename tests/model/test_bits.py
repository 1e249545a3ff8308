"""A model whose language model is loaded in 4 or 8 bits, on the CPU as well: smaller, and nearly the same."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from exports import built
from prompters import seen

from sightline.errors import UserError
from sightline.model.assemble import check_bits
from sightline.model.batched import replies
from sightline.model.generate import Memory, Sampling, reply
from sightline.model.load import VLM, load
from sightline.model.save import save
from sightline.recipe import ModelRecipe, TuneRecipe
from sightline.types import ImageRef, Message, Text, ask

NEVER = ("vision_tower", "multi_modal_projector", "lm_head")
"""Parts that stay as they are."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'sightline-vlm[quantize]'")
    folder = tmp_path_factory.mktemp("world")
    tiny.make_data(folder, rows=2)
    tiny.make_llm(folder / "llm", intermediate_size=128)  # bitsandbytes wants multiples of 64 on the CPU
    return save(built(folder), folder / "saved")


@pytest.fixture(scope="module", params=[4, 8])
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def vlm(saved: Path, bits: int) -> VLM:
    return load(saved, device="cpu", bits=bits)


@pytest.fixture(scope="module")
def whole(saved: Path) -> VLM:
    return load(saved, device="cpu")


@pytest.fixture
def question(saved: Path) -> Message:
    return ask("What colour is this square?", [ImageRef(str(saved.parent / "images" / "0_0.jpg"))])


def test_the_layers_of_the_language_model_and_no_others(vlm: VLM, whole: VLM, bits: int) -> None:
    shrunk = {name: module for name, module in vlm.model.named_modules() if "bit" in type(module).__name__}
    wanted = {name: module for name, module in whole.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert shrunk.keys() == {name for name in wanted if not any(part in name for part in NEVER)}
    assert len(shrunk) == 2 * 7
    for name, module in shrunk.items():
        numbers = wanted[name].weight.numel()
        assert module.weight.numel() * module.weight.element_size() == numbers * bits // 8
    ours = vlm.model.state_dict()
    others = {
        name: tensor for name, tensor in whole.model.state_dict().items() if name.rpartition(".")[0] not in shrunk
    }
    assert len(others) > 50
    assert all(torch.equal(ours[name], tensor) for name, tensor in others.items())


def test_widths_that_cannot_be_are_refused_before_a_weight_is_read(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "narrow")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["intermediate_size"] = 96
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="has layers of width 96; use a GPU"):
        load(folder, device="cpu", bits=4)
    for tune in ({"llm": "qlora"}, {"llm": "frozen", "llm_bits": 4}):
        with pytest.raises(UserError, match="has layers of width 96; use a GPU"):
            check_bits(ModelRecipe(from_model=str(folder)), TuneRecipe(**tune), torch.device("cpu"))
    saved_whole = {"llm": "qlora", "llm_lora": {"modules_to_save": ["down_proj"]}}
    check_bits(ModelRecipe(from_model=str(folder)), TuneRecipe(**saved_whole), torch.device("cpu"))
    check_bits(ModelRecipe(from_model=str(folder)), TuneRecipe(llm="qlora"), torch.device("cuda"))


def test_nearly_the_same_logits(vlm: VLM, whole: VLM, bits: int, question: Message) -> None:
    """Of random weights 8 bits keep all but 2 %, NF4 all but a fifth: as large as rounding to 256 and 16 values is."""
    encoded = whole.prompter.encode([question])
    with torch.no_grad():
        exact, rounded = (
            each.model(
                input_ids=torch.from_numpy(encoded.ids)[None], pixel_values=seen(each.prompter, encoded.images)
            ).logits.float()
            for each in (whole, vlm)
        )
    error = float((exact - rounded).norm() / exact.norm())
    assert (0.002 < error < 0.05) if bits == 8 else (0.05 < error < 0.3)


def test_it_chats(vlm: VLM, question: Message, caplog: pytest.LogCaptureFixture) -> None:
    """The stream, its cache and the batch say the same, and bitsandbytes says nothing at every layer of every token."""
    memory = Memory()
    with caplog.at_level(logging.WARNING):
        first = "".join(reply(vlm, [question], Sampling(max_new_tokens=8), memory))
        turns = [question, Message("assistant", (Text(first),)), ask("Why?")]
        second = "".join(reply(vlm, turns, Sampling(max_new_tokens=8), memory))
    assert [first] == replies(vlm, [[question]], max_new_tokens=8, batch_size=1)
    assert first and second
    assert not [record.name for record in caplog.records if record.name.startswith("bitsandbytes")]
