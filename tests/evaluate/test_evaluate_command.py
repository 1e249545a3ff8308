"""What the commands of evaluation do alike: which folders they take for a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from exports import built

from sightline import cli
from sightline.model.save import save


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a random model in its `hf`."""
    folder = tmp_path_factory.mktemp("world")
    tiny.make_llm(folder / "llm", num_hidden_layers=1)
    save(built(folder), folder / "run" / "hf")
    return folder / "run"


@pytest.mark.parametrize("command", ["mmbench", "eval-answers"])
def test_a_run_is_its_finished_model(
    finished: Path, tmp_path: Path, tsv: Callable[..., Path], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    images = tiny.make_data(tmp_path, rows=3)[1]
    data = (
        (tsv({}, {"answer": "B"}), ()) if command == "mmbench" else (tmp_path / "data.json", ("--image-folder", images))
    )
    said = []
    for model in (finished, finished / "hf"):
        out = tmp_path / f"from_{model.name}"
        flags = ("--data-path", data[0], *data[1], "--work-dir", out, "--device", "cpu", "--max-new-tokens", "8")
        assert cli.main([command, *map(str, (model, *flags))]) == 0
        remark = f"{finished} is a run; its model is {finished / 'hf'}\n"
        assert (remark in capsys.readouterr().err) == (model == finished)
        lines = next(out.glob("*/answers.jsonl")).read_text(encoding="utf-8").splitlines()
        said.append([json.loads(line)["answer"] for line in lines])
    assert said[0] == said[1] and len(said[0]) >= 2 and all(said[0])
