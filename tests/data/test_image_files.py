"""Images of rows become files of one folder, which they cannot leave, and nothing there is written over."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from picture_files import noise, saved, scene

from sightline.data.forms.reading import Picture
from sightline.data.image_files import ImageFiles
from sightline.errors import DataError

JPEG, PNG = saved(scene(), "JPEG"), saved(noise(20, 10), "PNG")


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_gathered_images_have_safe_names_and_lose_nothing(tmp_path: Path, images: Path) -> None:
    other = saved(noise(30, 10), "PNG")
    out = tmp_path / "out"
    files = ImageFiles(out, str(images), fetches=False)

    def name(source: str | None, data: bytes | None = None) -> str:
        kept = files.keep(Picture(source, data))
        assert kept.data is None and kept.source is not None
        content = data if data is not None else PNG
        assert (out / kept.source).read_bytes() == content
        return kept.source

    assert name("x/1.png", PNG) == "x/1.png"
    assert name("x/1.png", PNG) == "x/1.png"
    taken = name("x/1.png", other)
    assert taken.startswith("x/1-") and taken.endswith(".png") and taken == name("x/1.png", other)
    by_content = name(None, PNG)
    assert by_content.endswith(".png") and name(data_uri(PNG)) == by_content
    for hostile in (
        "../evil.png",
        "/evil.png",
        "x/../../evil.png",
        ".hidden.png",
        "evil.py",
        "a\\b.png",
        "https://x/a.png",
    ):
        assert name(hostile, PNG) == by_content
    assert name("deep/b.png") == "deep/b.png"
    assert not (tmp_path / "evil.png").exists()
    for missing in ("none.png", "../source.json", "/etc/passwd"):
        with pytest.raises(DataError):
            files.keep(Picture(missing))
    with pytest.raises(DataError, match="--download"):
        files.keep(Picture("https://example.org/a.png"))
    for nameless in (None, "x/2.png"):
        with pytest.raises(DataError):
            files.keep(Picture(nameless, b"no image"))
    assert not (out / "x" / "2.png").exists()
    (out / "a.jpg").write_bytes(PNG)
    with pytest.raises(DataError, match="is another picture"):
        files.keep(Picture("a.jpg"))
