"""A source -> a folder for llama.cpp and Ollama: language model, vision tower with projector, Modelfile."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rich.progress import Progress, TimeRemainingColumn

from sightline.convert.gguf_file import FILE_TYPES, Contents, gguf_package
from sightline.convert.gguf_text import text_contents, text_remarks
from sightline.convert.gguf_tokenizer import rstrips
from sightline.convert.gguf_vision import vision_contents, vision_remarks
from sightline.convert.modelfile import modelfile
from sightline.convert.source import Source
from sightline.errors import ModelError, shown
from sightline.files import appearing
from sightline.runtime import console, say

MODELFILE = "Modelfile"


def write(
    source: Source,
    out: Path,
    *,
    quantize: str = "f16",
    mend_clip: bool = False,
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write `model-*.gguf`, `mmproj-*.gguf` and `Modelfile`; the folder appears when `finish` is through with it.

    `quantize` is the format of the language model's matrices: f32, f16, bf16 or q8_0. The vision tower is written in
    f32 with f32, else in f16. `mend_clip` writes a CLIP tower so that llama.cpp's issue 25814 costs a picture its first
    patch alone; once that is solved, such a file is wrong. Raises ModelError where llama.cpp would compute something
    else than this model, MissingExtra without the package gguf.
    """
    files = contents(source, quantize=quantize, mend_clip=mend_clip)
    text = modelfile(source.prompter, list(files))
    for remark in (*text_remarks(source.config.text_config), *vision_remarks(source, mend_clip=mend_clip)):
        say(remark)
    needs = sum(file.nbytes for file in files.values())
    with appearing(out, needs=needs) as partial:
        _write(files, partial, needs)
        (partial / MODELFILE).write_text(text, encoding="utf-8")
        finish(partial)


def contents(source: Source, *, quantize: str, mend_clip: bool) -> dict[str, Contents]:
    """What each of the two files is to say, the language model's first; nothing is read yet."""
    gguf_package()
    if quantize not in FILE_TYPES:
        raise ModelError(f"{shown(quantize)} is no format of weights for GGUF; choose {', '.join(FILE_TYPES)}")
    tower = "f32" if quantize == "f32" else "f16"
    try:
        name = model_name(source)
        return {
            f"model-{quantize}.gguf": text_contents(source, name, quantize),
            f"mmproj-{tower}.gguf": vision_contents(source, name, tower, mend_clip=mend_clip),
        }
    except ModelError as error:
        raise ModelError(f"{error}; huggingface holds such a model") from error


def model_name(source: Source) -> str:
    """What the files call the model. llama.cpp reads `phi-3` in a name as a property of its tokens."""
    folder = source.path.resolve()
    name = re.sub("phi-?3", "phi 3", folder.parent.name if folder.name == "hf" else folder.name, flags=re.IGNORECASE)
    return f"{name} (phi-3)" if rstrips(source.prompter.tokenizer) else name


def _write(files: dict[str, Contents], folder: Path, total: int) -> None:
    with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("writing GGUF", total=total)
        for file, contents in files.items():
            contents.write(folder / file, lambda nbytes: bar.advance(task, nbytes))
