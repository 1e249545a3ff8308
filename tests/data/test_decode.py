"""`data check --decode` finds what headers, end marks and checksums do not tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from picture_files import noise, saved, undecodable

from sightline.cli import main


def test_what_only_decoding_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = saved(noise(), "png")
    (tmp_path / "good.png").write_bytes(whole)
    (tmp_path / "bad.png").write_bytes(undecodable(whole))
    rows = [{"image": name, "conversations": [[f"<image>{name}?", "Yes."]]} for name in ("good.png", "bad.png")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    check = ["data", "check", str(tmp_path / "rows.json"), "--images", str(tmp_path)]
    for flags, code in (([], 0), (["--decode"], 2), ([], 0), (["--decode"], 2)):  # each kept by itself
        assert main([*check, *flags]) == code
        assert ("row 2: image bad.png cannot be decoded" in capsys.readouterr().err) is (code == 2)
