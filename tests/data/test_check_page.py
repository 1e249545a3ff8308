"""The page and the terminal lines of a check, from made findings: complete, counted by hand, nothing runs in them."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sightline import cli
from sightline.data import check_page
from sightline.data.check_page import write_check_page
from sightline.data.check_tables import bars, print_checked
from sightline.data.checked import (
    Checked,
    Found,
    GoodRow,
    LongRow,
    SetFacts,
    common_sizes,
    histogram,
    numbers,
    spread,
    write_findings,
)
from sightline.data.verdict import KINDS, Finding
from sightline.types import ImageRef

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[2J"


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    Image.new("RGB", (900, 600), "red").save(tmp_path / "a.jpg")
    found = [
        Found("a.json", 2, Finding("image_missing", f"image {HOSTILE} is missing")),
        Found("a.json", 7, Finding("image_missing", "image 7.jpg is missing")),
        Found("b.json", 1, Finding("duplicate", "the same as a.json: row 1")),
    ]
    picture = ImageRef("a.jpg", str(tmp_path))
    return Checked(
        title=HOSTILE,
        sets=(SetFacts(HOSTILE, 10, 2, 8, 6, 3000, 900), SetFacts("b.json", 5, 0, 10, 5, 1000, 100)),
        found=tuple(found),
        settings={"tokenizer": HOSTILE},
        tokens=np.array([100, 200, 300]),
        targets=np.array([10, 20, 30]),
        images=np.array([0, 1, 1]),
        sizes=np.array([[900, 600], [900, 600], [30, 40]]),
        longest=(LongRow(f"{HOSTILE}: row 3", 300, 30, 1),),
        sample=(
            GoodRow("a.json: row 1", (picture,), ((HOSTILE, "text"), ("A red one.", "target")), 100, 10),
            GoodRow("a.json: row 4", (ImageRef("gone.jpg", str(tmp_path)),), (("Hm", "role"),), 100, 10),
        ),
    )


class Tags(HTMLParser):
    """The names of all tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_hostile_text_stays_text(checked: Checked, tmp_path: Path) -> None:
    page = write_check_page(checked, tmp_path / "check.html", HOSTILE).read_text()
    found = Tags(page)
    assert "script" not in found.tags and "img" not in found.tags
    assert not {name for name in found.attributes if name.startswith("on")}
    assert page.count("&lt;script&gt;alert(1)") == 7  # title twice, tokenizer, set, reason, longest, sample
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", page)


def test_every_row_is_on_the_page_folded_under_its_kind(checked: Checked, tmp_path: Path) -> None:
    page = write_check_page(checked, tmp_path / "check.html", "check.jsonl").read_text()
    assert page.count("<details") == 2 and "<details open" not in page
    assert "image missing <small>2 rows</small>" in page and "the same row again <small>1 row</small>" in page
    assert "Put the file in its place, or correct the path." in page
    assert "<td>a.json</td><td>7</td><td>image 7.jpg is missing</td>" in page
    assert page.index("Rows that cannot be used") < page.index("Worth knowing")
    # 3,000 of 4,000 tokens; 8 of 18 samples.
    assert '3,000 <small>75.0%</small><span class="meter">' in page and "8 <small>44.4%</small>" in page
    assert "<dt>samples an epoch</dt><dd>18</dd>" in page
    assert page.count('<svg class="chart"') == 4 and "900 x 600 px: 2, 30 x 40 px: 1" in page
    assert '<span class="target">A red one.</span>' in page
    # The picture is small, and one that has gone since is named.
    assert page.count("data:image/jpeg;base64,") == 1 and "image gone.jpg is missing" in page
    assert len(page) < 60_000


def test_a_page_that_would_be_too_long_says_where_the_rest_is(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_page, "MOST", 1)
    page = write_check_page(checked, tmp_path / "check.html", "check_findings.jsonl").read_text()
    assert "image 7.jpg" not in page and "1 more of this kind are in check_findings.jsonl." in page


def test_the_list_beside_it_has_all_of_them(checked: Checked, tmp_path: Path) -> None:
    lines = write_findings(checked.found, tmp_path / "f.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[1]) == {
        "file": "a.json",
        "row": 7,
        "bad": True,
        "kind": "image_missing",
        "reason": "image 7.jpg is missing",
        "remedy": KINDS["image_missing"].remedy,
    }


def test_the_terminal_shows_the_first_of_each_kind(checked: Checked) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_checked(checked, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text and r"\x1b[2J" in text
    assert "image missing (2 rows): put the file in its place, or correct the path" in text
    assert "a.json: row 2: image <script>" in text and "row 7" not in text
    assert re.search(r"b\.json +5 +0 +10 \(55\.6%\) +5 +1,000 \(25\.0%\) +100\n", text)
    assert re.search(r"all +15 +2 +18 +11 +4,000 +1,000\n", text)


def test_a_clean_check_says_so() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_checked(Checked("a.json", (SetFacts("a.json", 3, 0, 3, 0, 0, 0),), ()), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Nothing to complain about." in text and "tokens" not in text


def test_figures() -> None:
    values = np.array([0, 4, 5, 9, 99])
    # 100 numbers from 0 to 99 in bins of 25.
    assert histogram(values, 4) == [(24, 4), (49, 0), (74, 0), (99, 1)]
    assert histogram(np.array([0, 1, 1]), 24) == [(0, 1), (1, 2)]
    assert histogram(values[:0]) == []
    assert bars(values, 4) == "█  ▂"
    assert spread(np.arange(1, 101)) == {"smallest": 1, "median": 51, "p95": 96, "p99": 100, "largest": 100}
    assert spread(values[:0]) == {}
    assert common_sizes(np.array([[2, 1], [3, 3], [3, 3]]), 1) == [("3 x 3", 2)]


def test_numbers_are_plain_json(checked: Checked) -> None:
    plain = json.loads(json.dumps(numbers(checked)))
    assert plain["rows"] == 15 and plain["bad"] == 2 and plain["tokens"] == 4000
    assert plain["findings"] == {"image_missing": 2, "duplicate": 1}
    assert plain["image_width"]["smallest"] == 30 and plain["sets"][1]["used"] == 10


@pytest.mark.parametrize("name", ["check.html", "check_findings.jsonl"])
def test_what_sightline_has_not_written_is_not_replaced(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before any row is looked at."""
    rows = tmp_path / "rows.json"
    rows.write_text('[{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}]')
    words = ["data", "check", str(rows), "--html", str(tmp_path / "check.html")]
    for content in ('{"file": "mine"}\n', "mine"):
        (tmp_path / name).write_text(content)
        assert cli.main(words) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: {tmp_path / name} is there already") and printed.out == ""
        assert {path.name for path in tmp_path.iterdir()} == {"rows.json", name}
        assert (tmp_path / name).read_text() == content
    (tmp_path / name).unlink()
    for _ in range(2):
        assert cli.main(words) == 0  # its own, and an empty list of findings
    write_findings([Found("a.json", 1, Finding("other", "a"))], tmp_path / "check_findings.jsonl")
    assert cli.main(words) == 0
