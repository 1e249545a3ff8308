"""How much is taken from files that strangers made: every bound that is a number, with its reason and its remedy.

    --raise-limit NAME=NUMBER        raises one, in every command
    limits: {NAME: NUMBER}     does so in a recipe, for each command that is given the recipe itself

The recipe inside a stranger's run or checkpoint raises nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, ValidationError

from sightline.errors import UserError
from sightline.recipe_sections import Section


class Limits(Section):
    """What is refused where it exceeds these numbers."""

    image_megapixels: float = Field(128, gt=0)
    """Of one image: a 100-megapixel scan passes, and four bytes a pixel make half a gigabyte in each process."""
    layers: float = Field(1_000, gt=0)
    """Of a language model or vision tower; the deepest in use have 126, and each costs time before a weight is read."""
    patches: float = Field(65_536, gt=0)
    """Of one image in a vision tower: 16 times those of 1,024 pixels in patches of 16."""
    added_tokens: float = Field(20_000, gt=0)
    """Of a tokenizer's settings, which are added one by one; Gemma 3 has 6,400."""
    settings_megabytes: float = Field(256, gt=0)
    """Of one file of a model beside its weights; the largest in use is Gemma 3's tokenizer.json, 33."""
    tokenizer_seconds: float = Field(10, gt=0)
    """For a trial of a tokenizer on some thousand characters, which takes milliseconds."""
    template_seconds: float = Field(10, gt=0)
    """For one text of a model's chat template; the slowest of those in use takes some milliseconds."""
    template_megabytes: float = Field(512, gt=0)
    """Of memory for the same."""
    template_characters: float = Field(1_000_000, gt=0)
    """That a chat template writes for a short conversation; the longest in use write some thousand."""
    image_megabytes: float = Field(256, gt=0)
    """Of one image that is fetched; photographs have 1 to 20, and eight are fetched at a time."""
    image_seconds: float = Field(120, gt=0, le=1e6)
    """For one image that is fetched, all tries together: a slow server must not hold up a million rows."""
    download_megabytes: float = Field(100_000, gt=0)
    """Of one part of a known set; the largest has 27,400."""
    download_seconds: float = Field(172_800, gt=0, le=1e6)
    """For such a part, all tries together: two days, in which 1 MB a second fetches 172,800 MB."""
    pickle_megabytes: float = Field(64, gt=0)
    """Of what describes the tensors of a .pth or .bin file: a thousand tensors take a fifth of one, histories of
    training a few, and a byte may become a hundred in memory."""


_now = Limits()
_by_flag: dict[str, float] = {}


def limits() -> Limits:
    """Those that hold in this process."""
    return _now


def use(these: Limits) -> None:
    """Let these hold in this process from now on, but for what the command line says otherwise.

    Processes that this one starts are told by whoever starts them.
    """
    global _now
    _now = these.model_copy(update=_by_flag)


def set_by_flags(texts: Sequence[str]) -> None:
    """Take `NAME=NUMBER`s of the command line; UserError for a name that is none, and for no number."""
    for text in texts:
        name, _, number = text.partition("=")
        if name not in Limits.model_fields:
            raise UserError(
                f"--raise-limit {text}: there is no limit {name!r}; known: {', '.join(sorted(Limits.model_fields))}"
            )
        try:
            _by_flag[name] = getattr(Limits.model_validate({name: number}), name)
        except ValidationError as error:
            raise UserError(f"--raise-limit {text}: {error.errors()[0]['msg'].lower()}") from None
    use(_now)


def remedy(name: str, needed: float) -> str:
    """How an error says that a limit can be raised to what this input needs."""
    assert name in Limits.model_fields, name
    return f"or, where you trust it, --raise-limit {name}={needed:.10g}"
