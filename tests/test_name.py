"""The index has another project called sightline: no text of ours tells anybody to install it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OTHER = re.compile(r"pip install[^\n]*[ '\"]sightline(?!-vlm)(?![\w/.])")


def test_the_distribution_is_called_sightline_vlm() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "sightline-vlm" and "sightline" in project["scripts"]
    assert all(not re.match(r"sightline(?!-vlm)", need) for need in project["optional-dependencies"]["dev"])


def test_no_text_installs_the_other_one() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    texts = [ROOT / name for name in files.split("\0") if name.endswith((".md", ".py", ".toml", ".yaml", ".txt"))]
    texts = texts or [*ROOT.glob("*.md"), *ROOT.glob("tests/*.py"), *(ROOT / "src").rglob("*.py")]
    texts.remove(Path(__file__).resolve())
    assert [path for path in texts if OTHER.search(path.read_text(encoding="utf-8"))] == []
    for text, found in {
        "pip install " + "'sightline[gguf]'": True,
        "pip install " + "sightline": True,
        "pip install 'sightline-vlm[gguf]'": False,
        "pip install '.[gguf]'": False,
    }.items():
        assert bool(OTHER.search(text)) == found
