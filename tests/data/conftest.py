"""A folder of pictures, as rows name them."""

from pathlib import Path

import pytest
from picture_files import noise, saved, scene


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(saved(scene(), "JPEG"))
    (folder / "deep" / "b.png").write_bytes(saved(noise(20, 10), "PNG"))
    return folder
