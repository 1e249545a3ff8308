"""Packed attention equals transformers' eager attention under an explicit mask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import eager_attention_forward

from sightline.errors import ModelError
from sightline.model.assemble import assemble, make_prompter
from sightline.model.attention import NAME, _alike, _attend, packed_attention
from sightline.recipe import ModelRecipe

LENGTHS = (1, 7, 12, 2)


def block_diagonal(lengths: tuple[int, ...], window: int | None = None) -> torch.Tensor:
    """float32 [1, 1, T, T], written with loops: 0 where a position may look, -inf elsewhere."""
    mask = torch.full((sum(lengths), sum(lengths)), float("-inf"))
    start = 0
    for length in lengths:
        for row in range(start, start + length):
            for column in range(start, row + 1):
                if window is None or row - column < window:
                    mask[row, column] = 0.0
        start += length
    return mask[None, None]


def random_states(heads: int, dim: int = 16) -> torch.Tensor:
    return torch.randn(1, heads, sum(LENGTHS), dim, requires_grad=True)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 8, 100])
@pytest.mark.parametrize("scaling", [0.25, 0.1])
def test_as_transformers_with_a_mask(kv_heads: int, window: int | None, scaling: float) -> None:
    torch.manual_seed(0)
    states = [random_states(4), random_states(kv_heads), random_states(kv_heads)]
    module = cast(torch.nn.Module, SimpleNamespace(num_key_value_groups=4 // kv_heads, training=False))
    ours, _ = _attend(module, *states, None, sample_lengths=LENGTHS, scaling=scaling, sliding_window=window)
    theirs, _ = eager_attention_forward(module, *states, block_diagonal(LENGTHS, window), scaling=scaling)
    assert ours.shape == theirs.shape == (1, sum(LENGTHS), 4, 16)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(theirs)
    for one, other in zip(*(torch.autograd.grad((out * weight).sum(), states) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    states = [random_states(4).detach() for _ in range(3)]
    before, _ = _attend(torch.nn.Module(), *states, None, sample_lengths=LENGTHS)
    for state in states:
        state[:, :, 8:20] = torch.randn(1, 4, 12, 16)
    after, _ = _attend(torch.nn.Module(), *states, None, sample_lengths=LENGTHS)
    assert torch.equal(before[:, :8], after[:, :8]) and torch.equal(before[:, 20:], after[:, 20:])
    assert not torch.allclose(before[:, 8:20], after[:, 8:20])


def test_half_precision_is_that_of_autocast() -> None:
    """Weights that learn rotate queries and keys in float32: all three would reach the flash kernel in two formats."""
    states = [random_states(2).detach() for _ in range(2)]
    value = random_states(2).detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert {state.dtype for state in _alike(*states, value)} == {torch.bfloat16}
        assert _attend(torch.nn.Module(), *states, value, None, sample_lengths=LENGTHS)[0].dtype == torch.bfloat16
    assert [state.dtype for state in _alike(*states, value)] == [torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("lengths", [(21,), (10, 11), (10, 13)])
def test_lengths_must_add_up(lengths: tuple[int, ...]) -> None:
    states = [random_states(4) for _ in range(3)]
    with pytest.raises(AssertionError):
        _attend(torch.nn.Module(), *states, None, sample_lengths=lengths)


@pytest.mark.parametrize("argument", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}])
def test_attention_of_another_kind_is_refused(argument: dict[str, Any]) -> None:
    states = [random_states(4) for _ in range(3)]
    with pytest.raises(ModelError, match="packed attention"):
        _attend(torch.nn.Module(), *states, None, sample_lengths=LENGTHS, **argument)
    _attend(torch.nn.Module(), *states, None, sample_lengths=LENGTHS, **dict.fromkeys(argument))


def test_what_comes_out_can_be_viewed_otherwise() -> None:
    """As Afmoe and JetMoE do, whose experts take `view` where others say `reshape`."""
    result, _ = _attend(torch.nn.Module(), *(random_states(4) for _ in range(3)), None, sample_lengths=LENGTHS)
    assert result.view(1, result.shape[1], -1).shape == (1, result.shape[1], 4 * result.shape[3])


def test_a_mask_that_a_model_makes_itself_is_not_passed_over() -> None:
    states = [random_states(4) for _ in range(3)]
    with pytest.raises(ModelError, match="makes masks by itself"):
        _attend(torch.nn.Module(), *states, torch.zeros(1, 4, 1, 22), sample_lengths=LENGTHS)


def test_a_model_that_keeps_the_lengths_to_itself_is_refused() -> None:
    states = [random_states(4) for _ in range(3)]
    with pytest.raises(ModelError, match="where the samples of a pack end"):
        _attend(torch.nn.Module(), *states, None)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


def small_llava(**text: Any) -> LlavaForConditionalGeneration:
    vision = {"model_type": "clip_vision_model", **SMALL, "image_size": 28, "patch_size": 14, "projection_dim": 16}
    config = LlavaConfig(vision_config=vision, text_config={**SMALL, **text}, image_token_index=63)
    return LlavaForConditionalGeneration(config).eval()


def test_layers_can_be_compiled_before_anything_else() -> None:
    """In a process of its own, as a run is: odd masks are refused there as well."""
    script = (
        "from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks\n"
        "from sightline.model import attention\n"
        "attention.compile_layers([])\n"
        "assert masks[attention.NAME] is attention._no_mask"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_gemma_2_is_refused() -> None:
    model = small_llava(model_type="gemma2", num_key_value_heads=2, head_dim=8)
    ids = torch.arange(6)[None]
    with packed_attention(model), pytest.raises(ModelError, match="soft-capping"):
        model(input_ids=ids, position_ids=ids, use_cache=False, sample_lengths=(6,))


def test_a_mask_of_another_kind_is_refused() -> None:
    """Chunks, as Llama 4 has them: what is asked of the mask and of nobody else."""
    model = small_llava(model_type="llama4_text", head_dim=8, attention_chunk_size=4, num_local_experts=2)
    ids = torch.arange(6)[None]
    with packed_attention(model), pytest.raises(ModelError, match="another kind"):
        model(input_ids=ids, position_ids=ids, use_cache=False, sample_lengths=(6,))


def test_the_models_own_attention_comes_back() -> None:
    model = small_llava(model_type="llama")
    ids = torch.arange(10)[None]
    before = model(input_ids=ids).logits
    kinds = [model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation]
    with pytest.raises(KeyError), packed_attention(model):
        assert model.model.language_model.config._attn_implementation == NAME
        assert model.model.vision_tower.config._attn_implementation == kinds[1]
        packed = model(input_ids=ids, use_cache=False, sample_lengths=(10,)).logits
        raise KeyError
    torch.testing.assert_close(packed, before, rtol=1e-5, atol=1e-6)
    assert [model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation] == kinds
    assert torch.equal(model(input_ids=ids).logits, before)


def test_only_the_language_model_is_switched(tmp_path: Path) -> None:
    llm, tower = tiny.make_llm(tmp_path / "llm"), tiny.make_tower(tmp_path / "tower")
    spec = ModelRecipe(llm=str(llm), vision_tower=str(tower))
    model: Any = assemble(spec, make_prompter(spec)).model
    with packed_attention(model):
        layers = [layer.self_attn.config._attn_implementation for layer in model.model.language_model.layers]
        seeing = [layer.self_attn.config._attn_implementation for layer in model.model.vision_tower.encoder.layers]
    assert layers == [NAME] * 2 and NAME not in seeing
