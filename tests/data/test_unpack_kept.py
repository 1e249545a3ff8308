"""Where archives are unpacked, nothing of the user's is lost, and nothing of the archive."""

from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
from test_unpack import tree, zipped

from sightline.data.layouts import Part
from sightline.data.prepare import _fill
from sightline.data.unpack import unpack
from sightline.errors import DataError


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with warnings.catch_warnings(), zipfile.ZipFile(archive, "w") as packed:
            warnings.simplefilter("ignore")
            for content in (b"one", b"two"):
                packed.writestr("images/1.jpg", content)
    else:
        with tarfile.open(archive, "w") as tape:
            for content in (b"one", b"two"):
                info = tarfile.TarInfo("images/./1.jpg")
                info.size = 3
                tape.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=r"holds 'images/.*1\.jpg' twice, and one would be lost; it was not unpacked"):
        unpack(archive, tmp_path / "images")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_a_folder_of_the_users_is_not_unpacked_into(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"images/1.jpg": b"one"})
    mine = tmp_path / "images.unpacking"
    mine.mkdir()
    (mine / "1.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"images\.unpacking is in the way, where archives are unpacked first"):
        unpack(archive, tmp_path / "images")
    assert tree(mine) == {"1.jpg": b"mine"} and not (tmp_path / "images").exists()


def test_an_archive_of_the_users_stays(tmp_path: Path) -> None:
    """`--remove-archives` is about those that were fetched."""
    (tmp_path / "downloads").mkdir()
    mine = zipped(tmp_path / "downloads" / "gqa.zip", {"images/1.jpg": b"one"})
    _fill(Part("gqa", "gqa", url="http://127.0.0.1:9/gqa.zip"), tmp_path, tmp_path / "gqa", remove_archives=True)
    assert mine.is_file() and tree(tmp_path / "gqa") == {"1.jpg": b"one"}
