"""Limits: raised by a flag or a recipe, by a flag before a recipe, never by a recipe that is merely read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline import limits as module
from sightline.errors import UserError
from sightline.limits import Limits, limits, remedy, set_by_flags, use
from sightline.recipe import load_recipe

MINIMAL = """\
model: {llm: a, vision_tower: b}
data: [{path: x.json}]
batch: {global_batch: 8}
optim: {lr: 1e-3}
limits: {image_megapixels: 200}
"""


@pytest.fixture(autouse=True)
def _usual() -> Iterator[None]:
    yield
    module._by_flag.clear()
    use(Limits())


def test_a_recipe_raises_them_where_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL)
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert limits() == Limits(), "reading alone changes nothing: it may be a stranger's"
    use(recipe.limits)
    assert limits().image_megapixels == 200


def test_a_flag_comes_before_the_recipe() -> None:
    set_by_flags(["image_megapixels=300"])
    use(Limits(image_megapixels=200))
    assert limits().image_megapixels == 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_pixels=3", "there is no limit 'image_pixels'; known: "),
        ("image_megapixels", "should be a valid number"),
        ("image_megapixels=-1", "greater than 0"),
        ("image_megapixels=nan", "finite"),
    ],
)
def test_what_is_no_limit(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"--raise-limit {text}: .*{said}"):
        set_by_flags([text])
    assert limits() == Limits()


def test_the_remedy_can_be_followed() -> None:
    words = remedy("image_megapixels", 271.5).split()
    assert words[-2] == "--raise-limit"
    set_by_flags(words[-1:])
    assert limits().image_megapixels == 271.5
