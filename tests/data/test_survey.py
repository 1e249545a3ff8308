"""What was seen is kept, found again, and thrown away as soon as it may be wrong; a kill loses a block at most."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from prompters import make_prompter
from rich.console import Console
from tiny import make_data

from sightline.data import survey as surveying
from sightline.data.inspect import Source
from sightline.data.sources import open_rows
from sightline.data.survey import survey
from sightline.data.surveyed import ARRAYS, Survey
from sightline.limits import Limits, limits, use
from sightline.prompt.prompter import template_named
from sightline.prompt.tiles import Tiles, square_grids

QUIET = Console(quiet=True)
TILES = Tiles(square_grids(28), 28, 2)
ROWS = 40


@pytest.fixture(autouse=True)
def blocks_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "BLOCK", 4)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The blocks that are looked at, in this process."""
    numbers: list[int] = []
    real = surveying._block

    def block(source: Source, number: int) -> Survey:
        numbers.append(number)
        return real(source, number)

    monkeypatch.setattr(surveying, "cores", lambda: 1)
    monkeypatch.setattr(surveying, "_block", block)
    yield numbers


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path, cache: Path) -> Source:
    path, images = make_data(tmp_path, rows=ROWS)
    return opened(path, images, cache)


def opened(path: Path, images: Path, cache: Path | None) -> Source:
    rows = open_rows(path, cache)
    return Source(str(path), rows, str(images), make_prompter(), 512, looked_at=len(rows))


def again(source: Source, cache: Path) -> Source:
    return opened(source.rows.path, Path(str(source.images)), cache)


def same(one: Survey, other: Survey) -> bool:
    names = [name for name in ARRAYS if name != "watched"]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_several_processes_see_what_one_sees(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, seen: list[int]
) -> None:
    alone = survey(source, QUIET, None)
    assert seen == list(range(10))
    monkeypatch.setattr(surveying, "cores", lambda: 3)
    assert same(alone, survey(source, QUIET, None))
    assert same(alone, survey(source, QUIET, cache))
    assert len(seen) == 10


@pytest.fixture
def _usual_limits() -> Iterator[None]:
    yield
    use(Limits())


def test_processes_that_are_spawned_have_the_same_limits(
    source: Source, monkeypatch: pytest.MonkeyPatch, _usual_limits: None
) -> None:
    given: list[Any] = []

    def pool(processes: int, context: object, begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        given.extend([begin, *arguments])
        raise ZeroDivisionError

    monkeypatch.setattr(surveying, "cores", lambda: 2)
    monkeypatch.setattr(surveying, "ProcessPoolExecutor", pool)
    use(Limits(image_megapixels=3))
    with pytest.raises(ZeroDivisionError):
        survey(source, QUIET, None)
    use(Limits())
    for quiet in ("signal.signal", "gc.freeze", "threading.Thread"):
        monkeypatch.setattr(quiet, MagicMock())
    begin, *arguments = given
    begin(*pickle.loads(pickle.dumps(arguments)))
    assert limits().image_megapixels == 3


def test_another_limit_is_another_look(source: Source, cache: Path, seen: list[int], _usual_limits: None) -> None:
    assert not survey(source, QUIET, cache).bad.any()
    use(Limits(image_megapixels=0.0001))
    assert survey(source, QUIET, cache).bad.any() and len(seen) == 20
    use(Limits())
    assert not survey(source, QUIET, cache).bad.any() and len(seen) == 20


def test_the_second_start_looks_at_nothing_and_maps_the_arrays(source: Source, cache: Path, seen: list[int]) -> None:
    first = survey(source, QUIET, cache)
    seen.clear()
    second = survey(again(source, cache), QUIET, cache)
    assert seen == [] and same(first, second)
    assert isinstance(second.tokens, np.memmap) and isinstance(again(source, cache).rows.spans, np.memmap)  # type: ignore[attr-defined]


def test_a_copy_in_another_process_maps_the_same_files(source: Source, cache: Path) -> None:
    for thing in (survey(source, QUIET, cache), again(source, cache).rows):
        packed = pickle.dumps(thing)
        assert len(packed) < 1000
        arrays = vars(pickle.loads(packed))
        assert isinstance(arrays.get("tokens", arrays.get("spans")), np.memmap)
    bare = survey(source, QUIET, None)
    assert same(bare, pickle.loads(pickle.dumps(bare)))


def test_findings_come_back(source: Source, cache: Path, seen: list[int]) -> None:
    rows = json.loads(source.rows.path.read_text())
    rows[5] = {"id": "ä \ud800"}
    rows[6]["image"] = "nowhere 图.png"
    source.rows.path.write_text(json.dumps(rows))
    first = survey(again(source, cache), QUIET, cache)
    found = list(first.findings())
    assert [(row, finding.kind) for row, finding in found] == [(5, "form"), (6, "image_missing")]
    assert "nowhere 图.png" in found[1][1].reason
    assert np.flatnonzero(first.bad).tolist() == [5, 6]
    seen.clear()
    assert list(survey(again(source, cache), QUIET, cache).findings()) == found and seen == []


CHANGES: dict[str, Any] = {
    "the file": lambda source: source.rows.path.write_text(source.rows.path.read_text() + " "),
    "one byte of the file": lambda source: source.rows.path.write_text(
        source.rows.path.read_text().replace("red", "rod")
    ),
    "a picture more": lambda source: Image.new("RGB", (9, 9)).save(f"{source.images}/more.png"),
    "a picture less": lambda source: Path(f"{source.images}/0_1.jpg").unlink(),
    "the template": lambda source: replace(source, prompter=make_prompter(template="chatml")),
    "the system prompt": lambda source: replace(
        source, prompter=replace(make_prompter(), template=template_named("vicuna", "Hello."))
    ),
    "the tokenizer": lambda source: replace(source, prompter=make_prompter("legacy")),
    "no tokenizer": lambda source: replace(source, prompter=None),
    "the size of images": lambda source: replace(source, prompter=replace(make_prompter(), tokens_per_image=5)),
    "pictures in tiles": lambda source: replace(source, prompter=replace(make_prompter(), tiles=TILES)),
    "max_length": lambda source: replace(source, max_length=511),
    "the form": lambda source: replace(source, form="llava"),
    "head": lambda source: replace(source, looked_at=8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_makes_wrong_is_looked_at_anew(change: str, source: Source, cache: Path, seen: list[int]) -> None:
    survey(source, QUIET, cache)
    seen.clear()
    time.sleep(0.01)
    changed = CHANGES[change](source)
    changed = changed if isinstance(changed, Source) else again(source, cache)
    after = survey(changed, QUIET, cache)
    assert seen == list(range(-(-changed.looked_at // 4)))
    assert same(after, survey(changed, QUIET, None))


def test_what_changes_nothing_is_not_looked_at(source: Source, cache: Path, seen: list[int]) -> None:
    survey(source, QUIET, cache)
    seen.clear()
    moved = source.rows.path.rename(source.rows.path.with_name("other.json"))
    survey(replace(opened(moved, Path(str(source.images)), cache), repeat=3, ratio=0.5), QUIET, cache)
    assert seen == []


def test_a_mended_picture_is_looked_at_again_but_only_its_block(source: Source, cache: Path, seen: list[int]) -> None:
    picture = Path(f"{source.images}/8_0.jpg")
    whole = picture.read_bytes()
    picture.write_bytes(b"broken")
    assert np.flatnonzero(survey(source, QUIET, cache).bad).tolist() == [8]
    seen.clear()
    time.sleep(0.01)
    picture.write_bytes(whole)
    assert not survey(source, QUIET, cache).bad.any()
    assert seen == [2]
    seen.clear()
    assert not survey(source, QUIET, cache).bad.any() and seen == []


def test_blocks_that_are_missing_or_damaged_are_looked_at_again(source: Source, cache: Path, seen: list[int]) -> None:
    first = survey(source, QUIET, cache)
    (folder,) = [path for path in cache.iterdir() if path.is_dir() and path.suffix == ""]
    half = (folder / "tokens.npy").read_bytes()[:150]
    (folder / "tokens.npy").unlink()
    (folder / "tokens.npy").write_bytes(half)
    blocks = sorted(folder.with_suffix(".blocks").iterdir())
    blocks[1].unlink()
    blocks[3].write_bytes(blocks[3].read_bytes()[:500])
    blocks[5].write_bytes(b"")
    seen.clear()
    second = survey(source, QUIET, cache)
    assert seen == [1, 3, 5] and same(first, second)


def test_a_cache_that_cannot_be_written_is_no_error(
    source: Source, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    rows = open_rows(source.rows.path, blocked / "index")
    seen = survey(replace(source, rows=rows), QUIET, blocked / "index")
    assert same(seen, survey(source, QUIET, None))
    assert capfd.readouterr().err.count("cannot write to the cache") <= 2


def test_a_bug_names_the_row(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "look", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        survey(source, QUIET, None)
    assert error.value.__notes__[0] in [f"while looking at {source.rows.path}: row {4 * n + 1}" for n in range(10)]


SLOW = """
import time
from pathlib import Path
from test_survey import QUIET, opened, replace, survey, surveying
surveying.BLOCK = 4
surveying.cores = lambda: 2
real = surveying._block
def slow(source, number):
    time.sleep(0.15)
    return real(source, number)
surveying._block = slow
cache = Path({cache!r})
source = opened(Path({path!r}), Path({images!r}), cache)
# Without the tokenizer, which is trained here and is not the same in each process.
survey(replace(source, prompter=None), QUIET, cache)
"""


def test_a_killed_pass_goes_on_where_it_was(source: Source, cache: Path, seen: list[int]) -> None:
    """Killed hard, it leaves no process behind either."""
    here = Path(__file__).parent
    code = SLOW.format(path=str(source.rows.path), images=str(source.images), cache=str(cache))
    paths = os.pathsep.join([str(here), str(here.parent), str(here.parents[1] / "src")])
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths})
    stored: list[Path] = []
    end = time.monotonic() + 60
    children: list[str] = []
    while len(stored) < 3 and process.poll() is None and time.monotonic() < end:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        stored = list(cache.glob("*.blocks/*.npz"))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {int(path.stem) for path in cache.glob("*.blocks/*.npz")}
    assert 3 <= len(done) < 10 and len(children) == 2
    source = replace(source, prompter=None)
    result = survey(source, QUIET, cache)
    assert set(seen) == set(range(10)) - done
    assert same(result, survey(source, QUIET, None))
    while any(_runs(child) for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_runs(child) for child in children)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
