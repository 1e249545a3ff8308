"""Rank 0 looks, the others map what it stored; a failure on rank 0 leaves nobody waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.runtime import cache_folder, rank_0_first

RANK = """
import os, sys
import torch.distributed as dist
from rich.console import Console
from sightline.data import survey as surveying
from sightline.data.index import open_index
from sightline.errors import DataError
from sightline.recipe import DataRecipe
dist.init_process_group("gloo")
looked = []
real = surveying._block
surveying._block = lambda source, number: (looked.append(number), real(source, number))[1]
try:
    index = open_index((DataRecipe(path=sys.argv[1]),), None, None, Console(quiet=True))
    mapped = type(index.surveys[0].tokens).__name__
    print(dist.get_rank(), len(index), len(looked), mapped, flush=True)
except DataError as error:
    print(dist.get_rank(), str(error).rpartition("/")[2], flush=True)
"""


def ranks(path: Path, folder: Path) -> list[str]:
    source = Path(__file__).parents[2] / "src"
    given = {"PYTHONPATH": str(source), "WORLD_SIZE": "2", "SIGHTLINE_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(path)],
            env=os.environ | given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    finally:
        for process in processes:
            process.kill()


def test_one_rank_looks_and_the_other_maps(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    path.write_text(json.dumps([{"conversations": turns}] * 3))
    assert ranks(path, tmp_path / "cache") == ["0 3 1 memmap", "1 3 0 memmap"]
    path.write_text("[{}")
    message = "a.json: the array breaks off, the file was cut off at line 1 (byte 3), in row 2"
    assert ranks(path, tmp_path / "cache") == [f"0 {message}", f"1 {message}"]


def test_without_a_group_everyone_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_0_first(lambda: 3) == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rank_0_first(lambda: 3) == 3


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.setenv("SIGHTLINE_CACHE", "")
    assert cache_folder() == Path("/xdg/sightline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/me/.cache/sightline")
