"""The name of a language model -> its configuration, tokenizer and weights; refused where LLaVA could not carry it.

LLaVA is a decoder between an embedding and a linear head, and training packs samples into one sequence: what a model
does beside that would be lost without a word, so it is looked for before a weight is read.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sightline.errors import ModelError, shown
from sightline.model.attention import objection
from sightline.model.foreign import check_fits, config_settings, open_config, open_tokenizer
from sightline.model.llamafy import family, llamafy, weight_files
from sightline.model.reading import REPORTED, WHOLE, check_keys, check_layers, quiet, reading
from sightline.runtime import cache_folder, rank_0_first, say

MADE = {"internlm": "InternLM", "internlm2": "InternLM2"}
"""Families that transformers does not know: Llamas are made of them."""

LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers in which a sample can be kept from its neighbours in a pack."""

MORE = "does more behind its last layer than a linear map (a scale, a cap, a bias), which LLaVA would leave out"

RENAMED = {"axk1", "laguna"}
"""Families whose LLaVA does not come back equal from its own folder (transformers 5.23)."""

STRETCHED = ("dynamic", "longrope")
"""Ropes that change for all samples of a pack with the longest of them."""


def readable_llm(name: str, *, weights: bool = False) -> str:
    """Where transformers can read a language model: its own name, or for InternLM and InternLM2 a Llama made of it.

    That one is kept in the cache, so it is made once; without `weights` it is a configuration and a tokenizer.
    """
    kind = made_of(name)
    if kind is None:
        return name
    with reading(name):
        source = fetched(name, weights=weights)
    files = [*sorted(source.glob("*.json")), *sorted(source.glob("*.model"))]
    files += weight_files(source) if weights else []
    facts = [str(source.resolve()), *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    place = cache_folder() / "llamafied" / f"{source.name}-{key}{'' if weights else '-tokenizer'}"

    def make() -> None:
        if not place.is_dir():
            try:
                llamafy(source, place, weights=weights)
            except OSError as error:
                raise ModelError(
                    f"cannot write {name} as a Llama to {place}: {error.strerror or error}; name another folder by the "
                    f"environment variable SIGHTLINE_CACHE"
                ) from error
            if weights:
                say(f"{name} is an {MADE[kind]}: written as a Llama to {place}")

    rank_0_first(make)
    return str(place)


def made_of(name: str) -> str | None:
    """The family of a language model that is read as a Llama; None where it is read as it is."""
    found = family(config_settings(name), name)
    return found if found in MADE else None


def fetched(name: str, *, weights: bool) -> Path:
    """The folder of a model, fetched from the hub where it is a name there."""
    if Path(name).is_dir():
        return Path(name)
    folder = Path(snapshot_download(name, allow_patterns=["*.json", "tokenizer.model"]))
    if weights:
        for pattern in ("*.safetensors", "pytorch_model*.bin"):
            folder = Path(snapshot_download(name, allow_patterns=[pattern]))
            if any(folder.glob(pattern)):  # not its index, which has come along already
                break
    return folder


def llm_config(name: str) -> Any:
    """The configuration of a language model, as a Llama where it is an InternLM.

    Raises ModelError for a model of another kind, and for one that would not be the same inside LLaVA.
    """
    config = open_config(readable_llm(name))
    check_llm(config, name)
    return config


def check_llm(config: Any, name: str) -> None:
    """Raise ModelError for the configuration of what is no language model that LLaVA could carry."""
    if config.model_type in WHOLE:
        raise ModelError(
            f"model.llm: {name} is {shown(config.model_type)}, not a language model; to go on with a whole model, "
            f"name it as model.from_model"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"model.llm: {name} is {shown(config.model_type)}, not a language model")
    if reason := _obstacle(config):
        raise ModelError(f"model.llm: {name} ({config.model_type}) {reason}")


def llm_tokenizer(name: str) -> Any:
    """The tokenizer of a language model."""
    return open_tokenizer(readable_llm(name))


def load_llm(name: str) -> PreTrainedModel:
    """The language model on the CPU, in the number format of its files."""
    folder = readable_llm(name, weights=True)
    check_fits(folder, lambda: AutoModelForCausalLM.from_config(open_config(folder)))
    with reading(folder), quiet():
        llm, report = AutoModelForCausalLM.from_pretrained(folder, **REPORTED, trust_remote_code=False)
    check_keys(name, report, "missing", "mismatched")
    check_layers(name, report, llm)
    return llm


def longest_packed(config: Any) -> int | None:
    """Tokens of a sample up to which its positions do not depend on its neighbours in a pack; None: always."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in STRETCHED:
        return None
    return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)


def make_room(llm: PreTrainedModel, vocabulary: int) -> None:
    """Give the embeddings at least `vocabulary` rows (a multiple of 64); new rows are the mean of the old ones.

    Many models have more rows than their tokenizer has tokens: then those are used, and nothing changes.
    """
    old = llm.get_input_embeddings().weight.shape[0]
    if rows_for(vocabulary, old) == old:
        return
    llm.resize_token_embeddings(rows_for(vocabulary, old), mean_resizing=False)
    for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
        with torch.no_grad():
            layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)


def rows_for(vocabulary: int, rows: int) -> int:
    """Rows of embeddings for so many tokens, of a model that has `rows`."""
    return rows if vocabulary <= rows else -(-vocabulary // 64) * 64


def _obstacle(config: Any) -> str | None:
    """Why LLaVA cannot carry a language model, or training cannot pack for it; None where both can."""
    try:
        alone = config.get_text_config() is config
    except ValueError:  # there are several
        alone = False
    if not alone:
        return "sees or hears by itself; name a language model without a tower of its own"
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not kind._supports_attention_backend:
        return "computes attention in a way of its own, in which packed samples would see each other"
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
    if odd or kind._is_stateful:
        return f"has layers ({', '.join(odd) or 'with a state'}) that carry one packed sample into the next"
    if config.model_type in RENAMED:
        return "is written by transformers under other names than it reads inside LLaVA: what was learned would be lost"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "caps the scores of attention softly (as Gemma 2 does), which packed attention does not know"
    try:
        return _tried(config)
    except (AttributeError, TypeError, KeyError, ValueError, ArithmeticError, RuntimeError) as error:
        return f"is built in a way that Sightline cannot take apart ({error})"


class _Output(BaseModelOutputWithPast):
    """A base model's answer to whatever its head asks for."""

    def __getattr__(self, name: str) -> None:
        return None


class _Stub(nn.Module):
    """Stands in for a whole decoder: gives the same hidden states to any input."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        return _Output(last_hidden_state=self.hidden)


def _tried(config: Any) -> str | None:
    """What is odd about the attention, and the way from hidden states to logits: tried on a model without weights."""
    small = copy.deepcopy(config)
    small.vocab_size, small.pad_token_id = 8, 0
    with torch.device("meta"), quiet():
        llm: Any = AutoModelForCausalLM.from_config(small)
    if config.tie_word_embeddings and not hasattr(llm.base_model, "embed_tokens"):
        return "ties its head to embeddings that are not called embed_tokens, where transformers' LLaVA looks for them"
    if reason := objection(llm):
        return reason
    head = llm.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return MORE
    plain = nn.Linear(head.in_features, head.out_features, bias=False)
    states = 4 * torch.arange(2 * head.in_features).sin().view(1, 2, -1)
    with torch.no_grad():
        plain.weight.copy_(torch.arange(plain.weight.numel()).cos().view_as(plain.weight))
        llm.set_output_embeddings(plain)
        setattr(llm, llm.base_model_prefix, _Stub(states))
        same = torch.allclose(llm(input_ids=torch.tensor([[1, 2]])).logits, plain(states))
    return None if same else MORE
