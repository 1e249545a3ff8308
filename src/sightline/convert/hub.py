"""What a user names as a model -> its folder: the folder itself, or a snapshot of the hub, fetched if it is lacking."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from sightline.errors import ModelError
from sightline.model.reading import reading

WANTED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors", "mm_projector.bin", "non_lora_trainables.bin")
"""Files of all formats; no program is among them but XTuner's configuration, which is read and never run."""


def located(name: str | Path) -> Path:
    """The folder of a model of any format; ModelError where it is neither here nor on the hub."""
    if Path(name).exists():
        return Path(name)
    with reading(name):  # which knows what can be a name on the hub
        try:
            folder = _snapshot(str(name), *WANTED, "xtuner_config.py")
            return folder if any(folder.rglob("*.safetensors")) else _snapshot(str(name), *WANTED, "*.bin")
        except Exception as error:  # the hub's own errors are of a dozen classes and fill a screen
            raise ModelError(
                f"no folder {name} here; and as a name on the Hugging Face hub it is not in the cache, and cannot be "
                f"fetched ({type(error).__name__}): name a folder, or look at the name and the network"
            ) from error


def _snapshot(name: str, *wanted: str) -> Path:
    return Path(snapshot_download(name, allow_patterns=list(wanted)))
