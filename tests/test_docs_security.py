"""docs/security.md lists the limits as they are."""

from __future__ import annotations

import re
from pathlib import Path

from sightline.limits import Limits

PAGE = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_limit_is_listed_with_its_value() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| ([\d,.]+) \|", PAGE, re.MULTILINE))
    assert {name: float(number.replace(",", "")) for name, number in listed.items()} == Limits().model_dump()
