"""Families that would come back from their folder with other weights are refused before any are read."""

from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from sightline.errors import ModelError
from sightline.model.llm import llm_config


@pytest.mark.parametrize("family", ["axk1", "laguna"])
def test_a_family_that_loses_names_is_refused(tmp_path: Path, family: str) -> None:
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{family}.* is written by transformers under other names"):
        llm_config(str(tmp_path))
