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


@pytest.mark.parametrize("content", ["", "<html>mine</html>", "# a table"])
def test_a_strangers_page_is_not_replaced(tmp_path: Path, content: str) -> None:
    page = tmp_path / "a.html"
    page.write_text(content)
    with pytest.raises(UserError, match=r"a\.html is there already and not a page of Sightline's; remove it or choose"):
        write_page(page, "a", [])
    assert page.read_text() == content
    page.unlink()
    write_page(page, "a", [])
    assert "<h1>b</h1>" in write_page(page, "b", []).read_text()


def test_a_link_to_nowhere_is_not_filled(tmp_path: Path) -> None:
    (tmp_path / "a.html").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is there already"):
        write_page(tmp_path / "a.html", "a", [])
    assert not (tmp_path / "theirs").exists()


def test_a_link_with_the_name_of_an_earlier_draft_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".a.html.tmp").symlink_to("theirs")
    write_page(tmp_path / "a.html", "a", [])
    assert (tmp_path / "theirs").read_text() == "theirs"
