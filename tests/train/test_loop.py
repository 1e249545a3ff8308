"""A whole run: what it writes, what it leaves alone, and how it ends when something is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from runs import Interrupted, log, losses, until
from torch import nn

from sightline.errors import DataError, MissingExtra, ModelError, UserError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.batched import replies
from sightline.model.load import VLM, load
from sightline.recipe import load_recipe
from sightline.runtime import seed_everything
from sightline.train.loop import train
from sightline.train.loss import PackedLoss
from sightline.types import ImageRef, ask

Trained = Callable[..., Path]


@pytest.mark.parametrize("seed", [0, 2**31, 2**53])
def test_large_seeds_are_seeds(trained: Trained, seed: int) -> None:
    assert len(losses(trained("optim.max_steps=1", f"run.seed={seed}"))) == 1


def test_what_is_frozen_comes_out_as_it_went_in(path: Path, trained: Trained) -> None:
    run = trained("tune.llm=frozen", "optim.max_steps=3")
    recipe = load_recipe(str(path))
    seed_everything(recipe.run.seed)
    before = assemble(recipe.model, make_prompter(recipe.model)).model.state_dict()
    after = load(run / "hf", device="cpu").model.state_dict()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in differing} == {"multi_modal_projector"} and len(differing) == 4


def test_no_graph_in_a_frozen_tower(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    inputs: list[torch.Tensor] = []
    forward = LlavaMultiModalProjector.forward

    def look(module: nn.Module, features: torch.Tensor) -> Any:
        inputs.append(features)
        return forward(module, features)

    monkeypatch.setattr(LlavaMultiModalProjector, "forward", look)
    trained("optim.max_steps=1")
    assert inputs and all(features.grad_fn is None and not features.requires_grad for features in inputs)


def test_the_model_can_answer_between_steps(path: Path, trained: Trained) -> None:
    picture = ImageRef(str(path.parent / "world" / "images" / "0_0.jpg"))
    answers: list[list[str]] = []
    modes: list[bool] = []

    def look(step: int, vlm: VLM) -> None:
        torch.rand(step)  # whoever looks may use up random numbers
        modes.append(vlm.model.training)
        questions = [[ask("What colour is this square?", [picture])], [ask("What is red?")]]
        answers.append(replies(vlm, questions, max_new_tokens=6, batch_size=2))

    changes = ["tune.llm=lora", "tune.llm_lora.dropout=0.3", "optim.max_steps=3", "optim.lr=1e-2"]
    alone = losses(trained(*changes, name="alone"))
    watched = trained(*changes, name="watched", after_step=look)
    assert losses(watched) == alone
    assert modes == [False] * 3
    questions = [[ask("What colour is this square?", [picture])], [ask("What is red?")]]
    assert replies(load(watched / "hf", device="cpu"), questions, max_new_tokens=6, batch_size=1) == answers[-1]


def test_answers_between_steps_in_bfloat16(trained: Trained) -> None:
    changes = ["tune.llm=lora", "optim.max_steps=2", "engine.dtype=bfloat16"]
    answers: list[str] = []
    trained(
        *changes,
        after_step=lambda step, vlm: answers.extend(replies(vlm, [[ask("?")]], max_new_tokens=3, batch_size=1)),
    )
    assert len(answers) == 2


def test_half_precision_runs(trained: Trained) -> None:
    run = trained("engine.dtype=bfloat16", "tune.vision_tower=lora", "optim.epochs=3")
    found = losses(run)
    assert found[-1] < found[0] - 0.2
    config = json.loads((run / "hf" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    # And once more in the other precision in the same process.
    assert losses(trained("optim.max_steps=1", name="full"))[0] == pytest.approx(found[0], abs=0.05)


def test_float16_on_the_cpu_is_refused(trained: Trained) -> None:
    with pytest.raises(UserError, match=r"^engine\.dtype: float16 .*bfloat16 or float32$"):
        trained("engine.dtype=float16")


def test_checkpointing_changes_no_loss(trained: Trained) -> None:
    changes = ["tune.llm=lora", "tune.vision_tower=lora", "tune.llm_lora.dropout=0.2", "optim.max_steps=4"]
    kept = losses(trained(*changes, name="kept"))
    again = losses(trained(*changes, "engine.gradient_checkpointing=true", name="again"))
    assert again == pytest.approx(kept, rel=1e-6)


def test_the_run_says_what_it_is(path: Path, trained: Trained) -> None:
    run = trained("optim.max_steps=2", "optim.vision_lr=1e-5")
    assert load_recipe(str(run / "recipe.yaml")) == load_recipe(
        str(path), ["optim.max_steps=2", "optim.vision_lr=1e-5"]
    )
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["seed"] == 42 and facts["steps"] == 2
    assert {"python", "torch", "transformers", "numpy"} <= facts["versions"].keys()
    # Rows 3, 9, 15 and 21 have no picture, 4, 10, 16 and 22 have two.
    data = facts["data"]
    assert (data["rows"], data["images"], data["text_only_rows"], data["bad_rows"]) == (24, 24, 4, 0)
    assert len(data["fingerprint"]) == 16 and data["targets"] < data["tokens"]
    # By hand: 64 to a row, a matrix of 64 x 64, two of 32 x 64, ... and biases of 64 in the projector.
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96 + 2 * 64
    rows = load(run / "hf", device="cpu").model.get_input_embeddings().weight.shape[0]
    assert rows % 64 == 0
    assert facts["learning"] == {
        "llm": {"parameters": 2 * layer + 64 + 2 * rows * 64, "lr": 1e-3},
        "projector": {"parameters": 32 * 64 + 64 + 64 * 64 + 64, "lr": 1e-3},
    }
    assert (run / "report.html").stat().st_size > 1000
    assert not (run / "bad_rows.jsonl").exists()


def test_tensorboard_shows_the_log(path: Path, trained: Trained) -> None:
    """Also that of a run which was interrupted, and did its third step twice."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    changes = ["run.tensorboard=true", "run.save_every=2", "optim.max_steps=4", "optim.projector_lr=2e-3"]
    with pytest.raises(Interrupted):
        trained(*changes, after_step=until(3))
    run = trained(*changes, resume="auto")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    steps = log(run)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    names = ["loss", "grad_norm", "tokens_per_second", "data_share", "fill", "memory_gb"]
    told = {f"train/{name}": [(step["step"], step[name]) for step in steps] for name in names}
    told |= {f"lr/{part}": [(step["step"], step["lr"][part]) for step in steps] for part in ("llm", "projector")}
    # TensorBoard's numbers are of 32 bits.
    assert shown == {tag: [(step, float(np.float32(value))) for step, value in course] for tag, course in told.items()}


def test_missing_tensorboard_is_said_before_anything_is_read(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"run\.tensorboard: true needs .*sightline-vlm\[tensorboard\]"):
        trained("run.tensorboard=true", "data.0.path=/nowhere.json", "model.llm=/nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["llm", "from_model"])
def test_conversations_longer_than_the_positions(path: Path, trained: Trained, tmp_path: Path, what: str) -> None:
    """Said before the data is read; 512 is what the tiny model has."""
    model = str(path.parent / "llm")
    changes = ["batch.max_length=513", "data.0.path=/nowhere.json"]
    if what == "from_model":
        model = str(trained("optim.max_steps=1", name="first"))
        changes += [f"model.from_model={model}", "model.llm=null", "model.vision_tower=null"]
    with pytest.raises(ModelError) as error:
        trained(*changes)
    message = str(error.value)
    assert message.startswith(f"batch.max_length 513: {model} has positions for 512 tokens only")
    assert "set batch.max_length=512" in message and "\n" not in message
    assert not (tmp_path / "run").exists()
    assert len(losses(trained("batch.max_length=512", "optim.max_steps=1", *changes[2:]))) == 1


def test_bad_rows_are_listed_or_stop_the_run(path: Path, trained: Trained, tmp_path: Path) -> None:
    rows = json.loads((path.parent / "world" / "data.json").read_text(encoding="utf-8"))
    rows[4]["image"] = "nowhere.png"
    rows[7]["conversations"] = []
    data = tmp_path / "bad.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    changes = [f"data.0.path={data}", "optim.max_steps=1"]
    with pytest.raises(DataError, match=r"bad\.json: row 5: .*skip"):
        trained(*changes, name="stop")
    assert not (tmp_path / "stop").exists()
    run = trained(*changes, "data.0.on_bad_row=skip", name="skip")
    listed = [json.loads(line) for line in (run / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["file"], row["row"], row["kind"]) for row in listed] == [
        (str(data), 5, "image_count"),
        (str(data), 8, "form"),
    ]


def test_an_image_that_vanishes_during_the_run(path: Path, tmp_path: Path) -> None:
    data, images = tiny.make_data(tmp_path / "world")
    recipe = load_recipe(str(path), [f"data.0.path={data}", f"data.0.images={images}", "run.save_every=1"])

    def vanish(step: int, vlm: VLM) -> None:
        if step == 2:
            for image in images.iterdir():
                image.unlink()

    with pytest.raises(DataError, match=r"missing"):
        train(recipe, tmp_path / "run", after_step=vanish)
    assert (tmp_path / "run" / "checkpoint-2").is_dir() and len(losses(tmp_path / "run")) == 2


def test_a_loss_that_is_no_number_stops_the_run(trained: Trained, tmp_path: Path) -> None:
    def poison(step: int, vlm: VLM) -> None:
        if step == 2:
            vlm.model.lm_head.weight.data[0] = float("nan")

    with pytest.raises(UserError) as error:
        trained("run.save_every=1", "run.keep=9", after_step=poison)
    message = str(error.value)
    assert message.startswith("the loss is nan at step 3 (") and "\n" not in message
    assert message.count("data.json: row ") == 4 and "and 2 more" in message and "optim.lr" in message
    assert len(losses(tmp_path / "run")) == 2
    assert sorted(p.name for p in (tmp_path / "run").glob("check*")) == ["checkpoint-1", "checkpoint-2"]


def test_a_gradient_that_is_no_number_is_never_saved(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = PackedLoss.forward
    calls: list[int] = []

    def overflow(module: PackedLoss, *inputs: Any) -> torch.Tensor:
        loss = forward(module, *inputs)
        calls.append(1)
        if len(calls) == 2:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(PackedLoss, "forward", overflow)
    with pytest.raises(UserError, match=r"^the norm of the gradient is (nan|inf) at step 2 \("):
        trained("run.save_every=1", "batch.pack_tokens=4000")
    assert [p.name for p in (tmp_path / "run").glob("check*")] == ["checkpoint-1"]
