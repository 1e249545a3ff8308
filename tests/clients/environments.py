"""environments.toml -> a virtual environment per program under `.venv-clients/`, made once and kept while unchanged."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / ".venv-clients"
TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("environments.toml").read_text(encoding="utf-8")
)


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is built now if it is not there as the table has it."""
    folder, wanted = FOLDER / name, TABLE[name]
    state = hashlib.sha256(json.dumps([wanted, sys.version], sort_keys=True).encode()).hexdigest()
    kept = folder / "built"
    if not kept.is_file() or kept.read_text(encoding="utf-8") != state:
        build(folder, wanted)
        kept.write_text(state, encoding="utf-8")
    return folder / "bin" / "python"


def build(folder: Path, wanted: dict[str, Any]) -> None:
    """Install anew; the first requirement before the others, for some of them look at it while they install."""
    print(f"building {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, wanted["requirements"][0]], check=True)
    subprocess.run([*install, *wanted["requirements"]], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for file, code in wanted.get("append", {}).items():
        with open(packages / file, "a", encoding="utf-8") as installed:
            installed.write(code)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or TABLE:
        print(python_of(chosen))
