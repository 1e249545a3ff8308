"""Several sets make one index: shares, repeats, templates, known sets, tables; bad rows and duplicates of all."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prompters import make_prompter
from rich.console import Console

from sightline.data import layouts
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.index import Index, open_index
from sightline.data.plan import Plan
from sightline.errors import DataError
from sightline.prompt.prompter import template_named
from sightline.recipe import DataRecipe

QUIET = Console(quiet=True)


def turn(question: str, answer: str = "A", **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def a_set(folder: Path, name: str, rows: list[Any], **settings: Any) -> DataRecipe:
    """A set in a JSON or JSONL file, by its name."""
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text)
    return DataRecipe(path=str(path), **settings)


def questions(name: str, count: int) -> list[dict[str, Any]]:
    return [turn(f"{name}{number}") for number in range(count)]


def opened(*entries: DataRecipe, seed: int = 0) -> Dataset:
    return open_dataset(entries, make_prompter(), 512, QUIET, seed=seed)


def indexed(*entries: DataRecipe) -> Index:
    return open_index(entries, make_prompter(), 512, QUIET)


def asked(dataset: Dataset) -> list[str]:
    return [dataset.conversation(sample).messages[0].text for sample in range(len(dataset))]


def test_repeat_and_head(tmp_path: Path) -> None:
    a = a_set(tmp_path, "a.json", questions("a", 4), repeat=2, head=3)
    b = a_set(tmp_path, "b.jsonl", questions("b", 2))
    dataset = opened(a, b)
    assert asked(dataset) == ["a0", "a1", "a2", "a0", "a1", "a2", "b0", "b1"]
    assert dataset.where.tolist()[3:] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    assert len(dataset.index) == 5
    assert dataset.facts()["rows"] == 8
    assert dataset.facts()["tokens"] == sum(len(dataset.encode(sample).ids) for sample in range(8))


def test_every_row_comes_as_often_in_an_epoch_as_it_is_repeated(tmp_path: Path) -> None:
    dataset = opened(
        a_set(tmp_path, "a.json", questions("a", 5), repeat=3), a_set(tmp_path, "b.json", questions("b", 4))
    )
    plan = Plan(tokens=dataset.tokens, global_batch=4, epochs=1, seed=1)
    seen = Counter(asked(dataset)[sample] for step in range(plan.num_steps) for sample in plan.samples(step).tolist())
    assert seen == {**{f"a{n}": 3 for n in range(5)}, **{f"b{n}": 1 for n in range(4)}}


def test_ratio_is_a_share_that_the_seed_draws(tmp_path: Path) -> None:
    entry = a_set(tmp_path, "a.json", questions("a", 200), ratio=0.1)
    first = opened(entry, seed=1)
    assert len(first) == 20 == len(set(asked(first)))
    assert asked(first) == asked(opened(entry, seed=1)) != asked(opened(entry, seed=2))
    assert (np.diff(first.samples) > 0).all()
    assert len(opened(entry.model_copy(update={"ratio": 0.001}))) == 1
    assert len(opened(entry.model_copy(update={"repeat": 2, "head": 50}))) == 10
    twice = opened(entry, entry)
    assert asked(twice)[:20] != asked(twice)[20:]


def test_mending_a_row_does_not_change_the_draw(tmp_path: Path) -> None:
    rows = questions("a", 100)
    good = asked(opened(a_set(tmp_path, "a.json", rows, ratio=0.5)))
    lost = rows.index(turn(good[7]))
    rows[lost] = {}
    bad = opened(a_set(tmp_path, "b.json", rows, ratio=0.5, on_bad_row="skip"))
    assert asked(bad) == good[:7] + good[8:]
    assert [row.origin for row in bad.bad_rows] == [f"{tmp_path / 'b.json'}: row {lost + 1}"]


def test_a_bad_row_outside_of_the_share_stops_nothing(tmp_path: Path) -> None:
    rows = questions("a", 100)
    chosen = set(asked(opened(a_set(tmp_path, "a.json", rows, ratio=0.5))))
    outside = next(number for number in range(100) if f"a{number}" not in chosen)
    rows[outside] = {}
    entry = a_set(tmp_path, "b.json", rows, ratio=0.5)
    assert opened(entry).bad_rows == ()
    assert [row for _, row, _ in indexed(entry).findings()] == [outside]
    rows[outside], rows[next(number for number in range(100) if f"a{number}" in chosen)] = rows[0], {}
    with pytest.raises(DataError, match=r"b.json: row \d+: no 'conversations'"):
        opened(a_set(tmp_path, "b.json", rows, ratio=0.5))


def test_each_set_has_its_template(tmp_path: Path) -> None:
    rows = questions("a", 2)
    dataset = opened(a_set(tmp_path, "a.json", rows), a_set(tmp_path, "b.json", rows, template="chatml"))
    prompter = make_prompter()
    texts = [prompter.tokenizer.decode(dataset.encode(sample).ids) for sample in range(4)]
    assert [text.startswith("<s>A chat between") for text in texts] == [True, True, False, False]
    assert [text.startswith("<|im_start|>user\na") for text in texts] == [False, False, True, True]
    for sample in range(4):
        assert dataset.tokens[sample] == len(dataset.encode(sample).ids)
    assert dataset.prompter.template.name == "vicuna"


def test_the_models_system_prompt_holds_for_all_templates(tmp_path: Path) -> None:
    from dataclasses import replace

    prompter = replace(make_prompter(), template=template_named("vicuna", "Be brief."))
    entry = a_set(tmp_path, "a.json", questions("a", 1), template="chatml")
    dataset = open_dataset((entry,), prompter, 512, QUIET)
    text = prompter.tokenizer.decode(dataset.encode(0).ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    # vicuna's own system prompt is vicuna's
    assert "system" not in prompter.tokenizer.decode(opened(entry).encode(0).ids)


@dataclass
class File:
    path: str
    images: str
    form: str


def test_known_sets_stand_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (30, 30)).save(images / "x.jpg")
    one = a_set(tmp_path, "one.json", [turn("<image>1", image="x.jpg"), turn("2")])
    pairs = [{"image": "x.jpg", "conversations": [["<image>\n3", "A"]]}]
    two = a_set(tmp_path, "two.jsonl", pairs)
    calls = []

    def known(name: str, root: str) -> tuple[File, ...]:
        calls.append((name, root))
        return File(str(one.path), str(images), "llava"), File(str(two.path), str(images), "paddlemix")

    monkeypatch.setattr(layouts, "known_entries", known)
    dataset = opened(DataRecipe(use="some_set", root="here", repeat=2, head=1), DataRecipe(use="some_set"))
    assert calls == [("some_set", "here"), ("some_set", "data")]
    assert [text.strip("\n") for text in asked(dataset)] == [
        *("<image>1", "<image>1", "<image>\n3", "<image>\n3"),
        *("<image>1", "2", "<image>\n3"),
    ]
    assert [source.name for source in dataset.index.sources][:2] == [one.path, two.path]
    Path(str(two.path)).unlink()
    with pytest.raises(DataError, match=r"two\.jsonl, which .* some_set, is missing: `sightline data prepare some_set"):
        opened(DataRecipe(use="some_set"))


def test_a_meta_file_stands_for_its_sets(tmp_path: Path) -> None:
    a, b = a_set(tmp_path, "a.jsonl", questions("a", 10)), a_set(tmp_path, "b.jsonl", questions("b", 2))
    meta = tmp_path / "meta.json"
    meta.write_text(
        json.dumps({"a": {"annotation": a.path, "repeat_time": 0.35}, "b": {"annotation": b.path, "repeat_time": 2}})
    )
    assert asked(opened(DataRecipe(path=str(meta)))) == ["a0", "a1", "a2", "b0", "b1", "b0", "b1"]


def test_a_file_that_is_shorter_than_its_meta_file_says_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A JSON Lines file that was cut off between two lines looks whole by itself.
    a = a_set(tmp_path, "a.jsonl", questions("a", 3))
    meta = tmp_path / "meta.json"
    for length, told in ((3, []), (1000, [f"{meta}: the set: 'length' is 1,000, but {a.path} has 3 rows"])):
        meta.write_text(json.dumps({"the set": {"annotation": a.path, "length": length}}))
        opened(DataRecipe(path=str(meta)))
        assert capsys.readouterr().err.splitlines() == told


def test_tables_beside_files(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder = tmp_path / "table"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(questions("p", 3)), folder / "train-0.parquet")
    dataset = opened(DataRecipe(path=str(folder)), a_set(tmp_path, "a.json", questions("a", 1)))
    assert asked(dataset) == ["p0", "p1", "p2", "a0"]


def test_the_form_is_named(tmp_path: Path) -> None:
    rows = [turn("a")]
    assert len(opened(a_set(tmp_path, "a.json", rows, form="llava"))) == 1
    with pytest.raises(DataError, match=r"row 1: pair 1 is not a list of two texts"):
        opened(a_set(tmp_path, "a.json", rows, form="paddlemix"))


def test_the_index_has_a_line_for_every_row(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "x.jpg")
    a = a_set(
        tmp_path, "a.jsonl", [turn("<image><image>", image=["x.jpg", "x.jpg"]), {}, turn("q")], images=str(tmp_path)
    )
    b = a_set(tmp_path, "b.json", [turn("<image>", image="x.jpg")], images=str(tmp_path), repeat=3)
    index = indexed(a, b)
    assert index.where.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert index.starts.tolist() == [0, 3, 4]
    assert index.bad.tolist() == [False, True, False, False]
    assert index.images.tolist() == [2, 0, 0, 1]
    assert index.first_image.tolist() == [0, 2, 2, 2, 3]
    assert index.sizes.tolist() == [[30, 20]] * 3
    assert (index.tokens > 0).tolist() == (index.digests > 0).tolist() == [True, False, True, True]
    assert index.samples(0).tolist() == [0, 2, 3, 3, 3]
    assert index.origin(1, 0) == f"{b.path}: row 1"


def test_duplicates_are_found_across_sets(tmp_path: Path) -> None:
    a = a_set(tmp_path, "a.json", [turn("x", id="1"), turn("y"), turn("x", id="2"), {}, {}])
    b = a_set(tmp_path, "b.jsonl", [turn("z"), {"messages": [{"role": "user", "content": "y"},
                                                             {"role": "assistant", "content": "A"}]}])  # fmt: skip
    found = [(source, row, f.kind, f.reason) for source, row, f in indexed(a, b).findings() if f.kind == "duplicate"]
    assert found == [
        (0, 2, "duplicate", f"the same as {a.path}: row 1"),
        (1, 1, "duplicate", f"the same as {a.path}: row 2"),
    ]
    assert not indexed(b).bad.any()


def test_a_file_that_is_listed_twice_is_meant_twice(tmp_path: Path) -> None:
    a = a_set(tmp_path, "a.json", [turn("x"), turn("y"), turn("x")])
    assert [(source, row) for source, row, _ in indexed(a, a).findings()] == [(0, 2)]


def test_findings_come_in_the_order_of_rows(tmp_path: Path) -> None:
    rows = [turn("x </s>"), {}, turn("x </s>"), turn("word " * 600)]
    found = [
        (source, row, finding.kind) for source, row, finding in indexed(a_set(tmp_path, "a.json", rows)).findings()
    ]
    assert found == [
        (0, 0, "control_token"),
        (0, 1, "form"),
        (0, 2, "control_token"),
        (0, 2, "duplicate"),
        (0, 3, "no_target"),
    ]


def test_a_row_with_two_faults_is_one_bad_row(tmp_path: Path) -> None:
    rows = [turn("q"), turn("<image><image>", image=["no.jpg", "nor.jpg"])]
    dataset = opened(a_set(tmp_path, "a.json", rows, images=str(tmp_path), on_bad_row="skip"))
    (bad,) = dataset.bad_rows
    assert bad.kind == "image_missing"
    first, second = (f"image {name} is missing: no file {tmp_path}/{name}" for name in ("no.jpg", "nor.jpg"))
    assert bad.reason == f"{first}; also: {second}"


def test_a_broken_line_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(turn("a")) + '\n{"conversations": [\n' + json.dumps(turn("b")) + "\n")
    dataset = opened(DataRecipe(path=str(path), on_bad_row="skip"))
    assert asked(dataset) == ["a", "b"]
    assert (dataset.bad_rows[0].kind, dataset.bad_rows[0].origin) == ("broken_json", f"{path}: row 2")


def test_the_fingerprint_is_of_what_is_learned_not_of_the_files(tmp_path: Path) -> None:
    rows = questions("a", 5)
    one, other = a_set(tmp_path, "a.json", rows), a_set(tmp_path, "b.jsonl", rows)
    assert opened(one).fingerprint == opened(other).fingerprint
    changes: list[dict[str, Any]] = [{}, {"repeat": 2}, {"ratio": 0.5}, {"head": 4}, {"template": "chatml"}]
    assert len({opened(one.model_copy(update=change)).fingerprint for change in changes}) == 5
