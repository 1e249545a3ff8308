"""The flags that name a model, where they make no sense."""

from __future__ import annotations

import argparse

import pytest

from sightline.errors import UserError
from sightline.model.flags import load_model, model_flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stop-words", "END", ""], "--stop-words: an empty text"),
        (["--llava", "./x"], "no model folder ./x"),
        (["--visual-encoder", "x"], "--visual-encoder goes with --llava DIR"),
        (["--visual-select-layer", "-2"], "--visual-select-layer goes with --llava DIR"),
    ],
)
def test_refused_before_anything_is_loaded(flags: list[str], words: str) -> None:
    parser = argparse.ArgumentParser()
    model_flags(parser)
    with pytest.raises(UserError, match=words):
        load_model(parser.parse_args(["no such model", *flags]))
