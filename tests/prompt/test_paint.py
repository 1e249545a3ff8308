"""What a terminal shows: numbers folded, nothing that steers it."""

from __future__ import annotations

import numpy as np

from sightline.prompt.paint import folded
from sightline.terminal import printable, printable_lines


def test_folded() -> None:
    assert folded(np.array([1, 319, *[-100] * 576, 2, 2, 7])) == "1 319 -100*576 2 2 7"
    assert folded(np.array([], dtype=np.int64)) == ""


def test_control_characters_are_escapes() -> None:
    assert printable("a\x1b[2Jb\nc\u202ed") == r"a\x1b[2Jb\nc\u202ed"
    assert printable_lines("a\x1b[2Jb\nc\u202ed\r\n") == "a\\x1b[2Jb\nc\\u202ed\\r\n"
    assert printable("Wo ist das Haus? 房子, ½ \U0001f600") == "Wo ist das Haus? 房子, ½ \U0001f600"
