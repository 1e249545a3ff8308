"""The driver of `make bench-gpu`: what it writes down when a measurement fails, runs out of memory or out of time."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

GPU = Path(__file__).parents[2] / "bench" / "gpu"
sys.path.insert(0, str(GPU))

import gpu  # noqa: E402
import table  # noqa: E402
from cases import CASES, OUT_OF_MEMORY  # noqa: E402


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(f"import json, sys, time\nfrom pathlib import Path\n{text}\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("Path(sys.argv[2]).write_text(json.dumps({'mfu': 0.5}))", {"mfu": 0.5}),
        ("raise ImportError('no module named peft')", {"error": "ImportError: no module named peft"}),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate')", {"error": "out of memory"}),
        ("raise RuntimeError('CUBLAS_STATUS_ALLOC_FAILED when calling')", {"error": "out of memory"}),
        (
            "print('Traceback (most recent call last):\\n  File\\nRuntimeError: CUDA error: device-side assert\\n'"
            "'CUDA kernel errors might be reported later.\\nCompile with `TORCH_USE_CUDA_DSA`.'); sys.exit(1)",
            {"error": "RuntimeError: CUDA error: device-side assert"},
        ),
        (
            "print('Traceback (most recent call last):\\n  File\\nAcceleratorError: CUDA error: out of memory\\n'"
            "'Search for it.\\nCUDA kernel errors\\nFor debugging\\nCompile with\\nDevice-side assertions\\n'"
            "'Exception ignored in: a destructor'); sys.exit(1)",
            {"error": "out of memory"},
        ),
        ("sys.exit('torch is too old')", {"error": "torch is too old"}),
        ("time.sleep(60)", {"error": "not done after 1 s"}),
    ],
)
def test_a_measurement_that_fails_is_written_down(text: str, facts: dict[str, Any], tmp_path: Path) -> None:
    assert gpu.measured(script(tmp_path, text), {}, 1 if "sleep" in text else 60) == facts


def test_the_next_setting_is_tried_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    args = gpu.parsed(["--set", "run.seed=1"])
    told: list[dict[str, Any]] = []

    def measured(script: str, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        told.append(job)
        return {"error": OUT_OF_MEMORY} if len(told) < 3 else {"mfu": 0.4}

    monkeypatch.setattr(gpu, "measured", measured)
    found = gpu.first_that_fits("sightline", "phi3-mini-full", {"steps": 1}, args, float("inf"))
    assert found["mfu"] == 0.4 and len(found["too_large"]) == 2
    assert [tuple(job["settings"]) for job in told] == [(*s, "run.seed=1") for s in CASES["phi3-mini-full"].ours[:3]]


def test_what_was_not_tried_for_want_of_time_is_no_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def measured(script: str, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        now[0] += 60
        return {"error": OUT_OF_MEMORY}

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found = gpu.first_that_fits("sightline", "phi3-mini-full", {}, gpu.parsed([]), 100)
    assert found["error"] == "no time was left" and len(found["too_large"]) == 2


def test_a_case_takes_no_longer_than_told_with_the_card_s_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """590 seconds for each: what a machine that is lent for 10 minutes a command has."""
    now, given = [0.0], []

    def measured(script: str, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        if script == "measure_card.py":
            now[0] += 20
            return {"device": "d", "gib": 80.0, "flops": 1e12, "versions": {}}
        now[0] += 30
        given.append(seconds)
        return {"error": "none"}

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))
    told = ["gpu.py", "--cases", "llava-7b-lora", "next-7b-lora", "--out", str(tmp_path / "gpu.json")]
    monkeypatch.setattr(sys, "argv", told)
    gpu.main()
    assert given == [570, 540, 590, 560]


def test_no_limit_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parsed(["--limit-gib", "0"])
    assert "--limit-gib: more than 0" in capsys.readouterr().err


def test_a_result_names_the_command_that_makes_it_again() -> None:
    given = ["--cases", "llava-7b-lora", "--set", "tune.llm_lora={r: 8}", "--without", "varlen", "--limit-gib", "12"]
    args = gpu.parsed([*given, "--out", "/somewhere/x.json"])
    words = shlex.split(gpu.command("llava-7b-lora", args))
    assert words[:2] == ["python", "bench/gpu/gpu.py"] and "/somewhere/x.json" not in words
    assert {**vars(gpu.parsed(words[2:])), "out": None} == {**vars(args), "out": None}


def test_table() -> None:
    ours = {"how": "h", "samples_per_second": 6.0, "tokens_per_second": 6000.0, "mfu": 0.56, "peak_gib": 40.0}
    ours |= {"reserved_gib": 50.0, "first_loss": 10.0, "targets": 5}
    theirs = ours | {"samples_per_second": 2.0, "mfu": 0.2}
    result = {"device": "H100", "dtype": "bfloat16", "matrix_product_tflops": 700.0, "goals": {"mfu": 0.55}}
    result |= {"sightline": ours, "trainer": theirs}
    assert "| 3.00 | MFU >= 55%: reached |" in table.table({"a": result})
    result["trainer"] = theirs | {"first_loss": 10.1}
    assert "| (3.00, but not the same work) |" in table.table({"a": result})
    result["trainer"] = {"how": "h", "error": "ImportError: no peft"}
    assert "ImportError: no peft" in table.table({"a": result})
    result["goals"] = {"peak_gib": 12}
    assert "<= 12 GiB: missed" in table.table({"a": result})


def driven(folder: Path, *more: str) -> str:
    out = ["--out", str(folder / "gpu.json"), "--steps", "1", "--warm", "1"]
    command = [sys.executable, GPU / "gpu.py", "--tiny", "--device", "cpu", *out, *more]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


KEYS = {"samples_per_second", "tokens_per_second", "mfu", "peak_gib", "first_loss", "targets", "how", "seconds"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_case_through_the_driver(dtype: str, tmp_path: Path) -> None:
    said = driven(tmp_path, "--dtype", dtype)
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert list(found) == list(CASES)
    for name, result in found.items():
        assert {"device", "versions", "command", "goals", "matrix_product_tflops"} <= result.keys()
        assert result["sightline"].keys() >= KEYS and result["trainer"].keys() >= KEYS, result
        assert table.same_work(result), name
        assert said.count(f"| {name} |") == 4


@pytest.mark.slow
def test_where_the_time_goes(tmp_path: Path) -> None:
    said = driven(tmp_path, "--dtype", "bfloat16", "--profile", "llama3-8b-qlora", "--without", "packing", "varlen")
    written = (tmp_path / "profile-llama3-8b-qlora.txt").read_text(encoding="utf-8")
    assert "matrix products" in written and "aten::mm" in written and written in said


def test_no_card(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    command = [sys.executable, GPU / "gpu.py", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == "torch sees no CUDA card; a CPU takes --device cpu --tiny"
