"""Scores and spreadsheets as they are written and shown: nothing in a name or a text is taken for something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from openpyxl import load_workbook

from sightline.errors import UserError
from sightline.evaluate.save import save_json, save_xlsx, score_json, show
from sightline.evaluate.task import Score, Share


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = {"[/x]": Share(1, 2), "[bold]fat": Share(1, 2), ":cat:": Share(1, 2)}
    show(Score("exact", Share(1, 2), table), "data[red].tsv :cat:")
    out = capsys.readouterr().out
    assert all(name in out for name in (*table, "data[red].tsv :cat:"))


def test_names_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(Score("exact", Share(1, 2), {"\x1b]0;x\x07": Share(1, 2), "a\nb": Share(1, 2)}), "\x1b[2J.tsv")
    out = capsys.readouterr().out
    assert "\\x1b]0;x\\x07" in out and "a\\nb" in out and "\\x1b[2J.tsv" in out
    assert out.replace("\n", "").isprintable()


def test_a_category_never_hides_another_number() -> None:
    table = {"Average": Share(0, 4), "details": Share(1, 4), "answers": Share(2, 4), "kind": Share(3, 4)}
    result = score_json(Score("exact", Share(8, 16), table))
    details = result.pop("details")
    expected = {
        "Average": 0.5,
        "Average (category)": 0.0,
        "details (category)": 0.25,
        "answers (category)": 0.5,
        "kind": 0.75,
    }
    assert result == expected
    assert details["questions"] == {name: 16 if name == "Average" else 4 for name in expected}
    assert details["half_width_95"].keys() == expected.keys()


def test_half_characters_are_written_as_json_escapes_them(tmp_path: Path) -> None:
    save_json(tmp_path / "x.json", {"id": "\ud800é"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "id": "\\ud800é"\n}\n'


def cell_of(tmp_path: Path, text: str) -> str:
    save_xlsx(tmp_path / "x.xlsx", ["text"], [[text]])
    sheet = load_workbook(tmp_path / "x.xlsx").active
    assert sheet is not None and sheet["A2"].data_type in ("s", "inlineStr")
    return str(sheet["A2"].value)


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "@x", "-cmd|' /C calc'!A0", "'007", "1e5", "#N/A", " x ", "a\tb\nc", "é猫😀"]
)
def test_texts_stay_texts(tmp_path: Path, text: str) -> None:
    assert cell_of(tmp_path, text) == text


def test_what_a_spreadsheet_cannot_hold_is_written_out(tmp_path: Path) -> None:
    assert cell_of(tmp_path, "a\x00b\x0cc\uffffd\ufffee\ud800f") == "a\\x00b\\x0cc\\uffffd\\ufffee\\ud800f"


def test_a_text_longer_than_a_cell_says_that_it_was_cut(tmp_path: Path) -> None:
    assert cell_of(tmp_path, "x" * 32_767) == "x" * 32_767
    cut = cell_of(tmp_path, "x" * 32_768)
    assert len(cut) == 32_767 and cut.endswith("x [cut: a cell holds no more]")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*x\.xlsx"):
        save_xlsx(tmp_path / "x.xlsx", ["text"], [])
    assert [path.name for path in tmp_path.iterdir()] == ["x.xlsx"]
