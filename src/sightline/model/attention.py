"""Attention inside a packed sequence: each sample sees itself and nothing of its neighbours.

Registered through transformers' attention interface, so any causal language model of transformers can use it. On GPUs
it is torch's variable-length flash attention; elsewhere one causal call per sample, which needs no mask either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sightline.devices import look
from sightline.errors import ModelError

NAME = "sightline_packed"

REFUSED = {"softcap": "soft-capping of scores, as in Gemma 2", "s_aux": "attention sinks, as in gpt-oss"}
"""Arguments of transformers' attention functions that would have to change the result."""


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the language model of a vision-language model attend within samples; put its own attention back after.

    Inside, `forward` takes `sample_lengths` (ints that add up to the sequence) as a keyword.
    """
    _register()
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


class Lengths(Sequence[int]):
    """The lengths of a pack's samples, into which torch.compile does not look.

    It makes new code for each tuple of ints that it meets, and each pack has one of its own.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)

    def __getitem__(self, at: Any) -> Any:
        return self.lengths[at]

    def __len__(self) -> int:
        return len(self.lengths)


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Let torch compile the parts of a language model's layers when they are first used, but for attention itself.

    Parts, because what is computed a second time for the backward pass is not looked into by the compiler as a whole.
    `forward` must then be given `Lengths`.
    """
    _register()
    AttentionInterface.register(NAME, torch.compiler.disable(_attend))
    for layer in layers:
        for part in layer.children():
            part.compile(dynamic=True)


def objection(llm: PreTrainedModel) -> str | None:
    """Why the samples of a pack cannot be kept apart in a language model, which lies on the meta device.

    None where they can, and where shapes without numbers do not tell (experts are chosen by numbers): then training
    stops in the same words.
    """
    _register()
    llm.set_attn_implementation(NAME)
    ids = torch.tensor([[0, 1]], device="meta")
    # A mask, though nobody looks at it: without one, transformers searches the positions for packs and finds no values.
    try:
        with torch.no_grad():
            llm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, sample_lengths=(1, 1))
    except ModelError as error:
        return str(error)
    except Exception:
        return None
    return None


def _register() -> None:
    if NAME not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(
    *args: Any, config: Any = None, use_vmap: bool = False, local_size: int | None = None, **kwargs: Any
) -> None:
    """No mask, since `_attend` makes none but causal and sliding ones; whoever asks for another one is refused."""
    if use_vmap or (local_size is not None and local_size != getattr(config, "sliding_window", None)):
        raise ModelError(
            "cannot be trained, because it asks for a mask of another kind than packed attention knows: causal and "
            "sliding ones"
        )


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sample_lengths: Sequence[int] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, T, d], key and value [1, kv_heads, T, d] -> [1, T, heads, d]."""
    for name, what in REFUSED.items():
        if kwargs.get(name) is not None:
            raise ModelError(f"cannot be trained, because packed attention does not know {what}")
    if attention_mask is not None:
        raise ModelError("cannot be trained, because it makes masks by itself, which packed attention does not know")
    if sample_lengths is None:
        raise ModelError("cannot be trained, because it does not tell its attention where the samples of a pack end")
    assert query.shape[0] == 1 and sum(sample_lengths) == query.shape[2], (query.shape, sample_lengths)
    query, key, value = _alike(query, key, value)
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and not dropout and any(facts.varlen for facts in look()):
        return _varlen(query, key, value, sample_lengths, scaling, sliding_window), None
    pieces = []
    for q, k, v in zip(*(tensor.split(list(sample_lengths), dim=2) for tensor in (query, key, value)), strict=True):
        band = _band(q, sliding_window)
        pieces.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=band, dropout_p=dropout, is_causal=band is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _alike(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In the format of autocast, where it is on: weights that learn are in float32, and with them what rotates q and k.

    torch's own attention would be cast so by autocast itself; the flash kernel would not, and wants half precision.
    """
    device = states[0].device.type
    if not torch.is_autocast_enabled(device):
        return states
    return tuple(state.to(torch.get_autocast_dtype(device)) for state in states)


def _band(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """bool [T, T]: the last `window` positions up to each one; None where plain causality says the same."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    borders = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(query.device, non_blocking=True)
    longest = max(lengths)
    before = -1 if window is None else window - 1
    result = varlen_attn(
        q, k, v, borders, borders, longest, longest, scale=scale, window_size=(before, 0), enable_gqa=True
    )
    assert isinstance(result, torch.Tensor)
    return result[None]
