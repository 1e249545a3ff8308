"""The frame of every page: its parts as they are given, its title escaped, nothing that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.errors import UserError
from sightline.page.page import facts_list, section, write_page


def test_parts_stand_in_order_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    path = write_page(tmp_path / "a.html", "a <b> & c", [section("One", "<p>1</p>"), section("Two", ""), "<p>3</p>"])
    text = path.read_text()
    assert "<title>a &lt;b&gt; &amp; c</title>" in text and "<h1>a &lt;b&gt; &amp; c</h1>" in text
    assert "<section><h2>One</h2><p>1</p></section>\n<p>3</p>" in text and "Two" not in text
    assert "default-src 'none'" in text and "<script" not in text
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_names_and_values_are_escaped() -> None:
    assert facts_list({"<a>": "<b>"}) == ('<dl class="facts"><div><dt>&lt;a&gt;</dt><dd>&lt;b&gt;</dd></div></dl>')
    assert facts_list({}) == ""


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write the report .*/none/a\.html \(No such file or directory\)"):
        write_page(tmp_path / "none" / "a.html", "a", [])
