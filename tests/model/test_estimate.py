"""Parameters against published counts; operations against torch's own counter, and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sightline.data.collate import Batch
from sightline.errors import ModelError
from sightline.model.attention import packed_attention
from sightline.model.estimate import operations, pairs, parameters, windows
from sightline.model.estimate_models import blank_model, shipped
from sightline.model.llm import check_llm
from sightline.model.tune import apply_tuning
from sightline.model.vision import checked_tower
from sightline.recipe import ModelRecipe, OptimRecipe, TuneRecipe
from sightline.train.loss import PackedLoss

CLIP = "openai/clip-vit-large-patch14-336"

PUBLISHED = {
    # The hub's own counts of the released files (`safetensors.total` of huggingface.co/api/models/<name>).
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,  # its index: total_size 16060522496, two bytes each
    "meta-llama/Meta-Llama-3-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    # The hub's less 64 per layer, since the files of Llama 2 hold a table of rotary frequencies in each
    # (6738417664, 13015866880 and 68976653312); Vicuna has the same shapes.
    "lmsys/vicuna-7b-v1.5": 6_738_417_664 - 32 * 64,
    "lmsys/vicuna-13b-v1.5": 13_015_866_880 - 40 * 64,
    "meta-llama/Llama-2-70b-hf": 68_976_653_312 - 80 * 64,
    # The hub's of InternLM2.5, which has the same shapes.
    "internlm/internlm2-chat-1_8b": 1_889_110_016,
    "internlm/internlm2-chat-7b": 7_737_708_544,
    "internlm/internlm2-chat-20b": 19_861_149_696,
    # Of the quantised files (`general.parameter_count`).
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    # KerasHub's presets.
    "google/gemma-2b-it": 2_506_172_416,
    "google/gemma-7b-it": 8_537_680_896,
    # Counted by others after loading the released weights.
    "Qwen/Qwen1.5-7B-Chat": 7_721_324_544,
    "Qwen/Qwen3-0.6B": 596_049_920,
    CLIP: 303_507_456,  # mteb, of mlcd-vit-large-patch14-336, which has the same shapes
    "openai/clip-vit-large-patch14": 303_179_776,
    "google/siglip-so400m-patch14-384": 428_225_600,
    "facebook/dinov2-base": 86_580_480,
    "facebook/dinov2-large": 304_368_640,
    "facebook/dinov2-giant": 1_136_480_768,
}
"""Language models with their head, tied tensors once; vision models without a classifier."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_exactly_the_published_ones(name: str) -> None:
    kind = "llm" if name in shipped()["llm"] else "vision_tower"
    config = AutoConfig.for_model(**shipped()[kind][name]["config"])
    with torch.device("meta"):
        model = (AutoModelForCausalLM if kind == "llm" else AutoModel).from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def by_hand(c: dict[str, Any]) -> int:
    """Llama, its like and Phi-3: what their configurations say, multiplied out."""
    h, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    d = c.get("head_dim") or h // heads
    layer = 2 * h * heads * d + 2 * h * kv * d + 3 * h * c["intermediate_size"] + 2 * h
    layer += (heads + 2 * kv) * d if c["model_type"] == "qwen2" else 0  # biases of q, k and v
    layer += (heads + 2 * kv) * d + h if c.get("attention_bias") else 0  # InternLM: also of o
    layer += 2 * d if c["model_type"] == "qwen3" else 0  # norms of q and k
    tables = 1 if c["tie_word_embeddings"] else 2
    return int(c["num_hidden_layers"] * layer + h + tables * c["vocab_size"] * h)


@pytest.mark.parametrize("name", shipped()["llm"])
def test_language_models_have_the_parameters_of_their_configurations(name: str) -> None:
    settings = shipped()["llm"][name]["config"]
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand(settings)


def test_what_is_shipped_can_be_assembled() -> None:
    for name, entry in shipped()["llm"].items():
        check_llm(AutoConfig.for_model(**entry["config"] | {"num_hidden_layers": 2}), name)
    for name, entry in shipped()["vision_tower"].items():
        checked_tower(AutoConfig.for_model(**entry["config"]), name, -2)


def test_a_whole_model_of_shipped_names() -> None:
    """LLaVA-1.5-7B as llava-hf publishes it has 7,063,427,072 parameters: 64 rows for new tokens, the projector."""
    blank = blank_model(ModelRecipe(llm="lmsys/vicuna-7b-v1.5", vision_tower=CLIP))
    parts = {part.name: part.total for part in parameters(blank.model)}
    assert parts["projector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert parts["vision tower"] == PUBLISHED[CLIP]
    assert sum(parts.values()) == 7_063_427_072
    assert (blank.tokens_per_image, blank.tiles_per_image) == (576, 1)


def test_next_has_tiles_and_a_newline() -> None:
    """336 px, 24 x 24 features a tile: the whole, and 2 x 2 tiles with a newline behind each of 48 rows."""
    blank = blank_model(ModelRecipe(llm="lmsys/vicuna-7b-v1.5", vision_tower=CLIP, next=True))
    assert (blank.tokens_per_image, blank.tiles_per_image) == (576 + 48 * 49, 5)
    assert sum(part.total for part in parameters(blank.model)) == 7_063_427_072 + 4096


@pytest.mark.parametrize(
    ("tower", "tokens"),
    [
        ("google/siglip-so400m-patch14-384", 729),
        ("facebook/dinov2-large", 1369),
        ("facebook/dinov2-with-registers-large", 1369 + 4),  # LLaVA drops the class token alone; registers stay
    ],
)
def test_image_tokens_of_other_towers(tower: str, tokens: int) -> None:
    assert blank_model(ModelRecipe(llm="Qwen/Qwen2.5-0.5B-Instruct", vision_tower=tower)).tokens_per_image == tokens


REFUSED = {
    "gpt2": ("llm", "embed_tokens, where transformers' LLaVA looks for them"),
    "mamba": ("llm", "computes attention in a way of its own"),
    "gemma2": ("llm", "caps the scores of attention"),
    "t5": ("llm", "is 't5', not a language model"),
    "llava": ("llm", "is 'llava', not a language model"),
    "qwen2_vl": ("from_model", "is 'qwen2_vl', not a LLaVA or LLaVA-NeXT"),
    "vit": ("vision_tower", "is 'vit', not a vision tower that Sightline knows"),
    "siglip2": ("vision_tower", "is a SigLIP 2 of free resolution"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_assembling_refuses_is_refused_here_in_the_same_words(kind: str, tmp_path: Path) -> None:
    key, said = REFUSED[kind]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    parts = {"llm": "lmsys/vicuna-7b-v1.5", "vision_tower": CLIP} if key != "from_model" else {}
    with pytest.raises(ModelError, match=said) as error:
        blank_model(ModelRecipe(**parts | {key: str(tmp_path)}))
    assert str(error.value).startswith(f"model.{key}: ") and "\n" not in str(error.value)


def test_a_layer_that_the_tower_does_not_have() -> None:
    with pytest.raises(ModelError, match=r"^model\.vision_feature_layer -99: openai/clip.* has 24 layers"):
        blank_model(ModelRecipe(llm="lmsys/vicuna-7b-v1.5", vision_tower=CLIP, vision_feature_layer=-99))


def test_an_unknown_name_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.llm: .*Sightline ships the sizes of") as error:
        blank_model(ModelRecipe(llm=str(tmp_path / "none"), vision_tower=CLIP))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["[" * 10**5, '{"added_tokens": [{}], "model": {}}', "[]"], ids=["deep", "odd", "list"]
)
def test_a_tokenizer_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    llm, tower = tiny.make_llm(tmp_path / "llm"), tiny.make_tower(tmp_path / "tower")
    (llm / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="cannot load") as error:
        blank_model(ModelRecipe(llm=str(llm), vision_tower=str(tower)))
    assert "\n" not in str(error.value)


def test_pairs_by_hand() -> None:
    assert [pairs(n) for n in (1, 2, 5)] == [1, 3, 15]
    # 5 positions that see at most 2 back, themselves included: 1 + 2 + 2 + 2 + 2.
    assert pairs(5, 2) == 9
    assert pairs(5, 5) == 15


def tuned_tiny(folder: Path, tune: TuneRecipe, **settings: Any) -> Any:
    tiny.make_llm(folder / "llm", **settings)
    tiny.make_tower(folder / "tower")
    blank = blank_model(ModelRecipe(llm=str(folder / "llm"), vision_tower=str(folder / "tower")))
    apply_tuning(blank.model, tune, OptimRecipe(lr=1e-3))
    return blank


WAYS = {
    "frozen": TuneRecipe(llm="frozen"),
    "full": TuneRecipe(llm="full"),
    "lora": TuneRecipe.model_validate({"llm": "lora", "llm_lora": {"r": 8}}),
    "all": TuneRecipe.model_validate({"llm": "full", "vision_tower": "full"}),
    "tower": TuneRecipe.model_validate({"llm": "frozen", "vision_tower": "lora", "vision_lora": {"r": 4}}),
}
SIZES = [
    {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3},
    {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_key_value_heads": 1},
    {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4, "num_key_value_heads": 4},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", range(len(SIZES)))
def test_operations_are_those_that_torch_counts(way: str, size: int, tmp_path: Path) -> None:
    """torch counts the products of forward and backward as they happen; it knows no causality, so we add that half.

    It also runs the tower's last layer, whose output nobody uses (transformers does), which ours leaves out.
    """
    blank = tuned_tiny(tmp_path, WAYS[way], **SIZES[size])
    lengths, targets, tiles = (90, 60, 33), 70, 3
    counted = torch_counts(blank, lengths, targets, tiles)
    cost = operations(blank.model)
    attention = sum(part * (sum(n * n for n in lengths) - sum(map(pairs, lengths))) for _, part in cost.per_pair)
    mine = cost.count(lengths, targets=targets, tiles=tiles) + attention
    unused = tiles * 17 * (4 * 32 * 32 + 2 * 32 * 48) * 2 + tiles * 4 * 32 * 17 * 17
    assert mine + unused == pytest.approx(counted, rel=0.03)


def torch_counts(blank: Any, lengths: tuple[int, ...], targets: int, tiles: int) -> int:
    model = blank.model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
        tower = model.model.vision_tower.embeddings
        tower.position_ids = torch.arange(tower.position_ids.shape[-1])[None]
        model.model.language_model.rotary_emb.inv_freq.fill_(1.0)
    length = sum(lengths)
    ids = torch.ones(1, length, dtype=torch.int64)
    ids[0, : tiles * blank.tokens_per_image] = model.config.image_token_id
    at, pixels = torch.arange(targets), torch.randn(tiles, 3, 56, 56)
    batch = Batch(ids, torch.arange(length)[None], lengths, at, at, pixels)
    # The plain kernel, because the counter does not know the CPU's fused one.
    with packed_attention(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        PackedLoss(model).train()(batch, pixels).backward()
    return counter.get_total_flops()


def test_what_is_frozen_costs_less(tmp_path: Path) -> None:
    """Per weight and token 6 operations where it learns, 4 where the gradient only passes, 2 more to recompute."""
    size = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3}
    weights = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192)
    full = tuned_tiny(tmp_path / "a", WAYS["full"], **size).model
    frozen = tuned_tiny(tmp_path / "b", WAYS["frozen"], **size).model
    assert operations(full).per_token == 6 * weights
    assert operations(frozen).per_token == 4 * weights
    assert operations(frozen, recompute=True).per_token == 6 * weights
    # No backward through a frozen tower: 2 of 3 layers forward, the projector learns (its input needs no gradient).
    tower = 2 * (16 * 3 * 14 * 14 * 32 + 2 * 17 * (4 * 32 * 32 + 2 * 32 * 48)) + 2 * 4 * 32 * 17 * 17
    assert operations(frozen).per_tile == tower + 16 * (4 * 32 * 64 + 6 * 64 * 64)


def test_figures_of_llava_1_5() -> None:
    """Worked out by hand: stage 1 with 600 tokens is 16.6 TFLOP, stage 2 with 836 tokens 34.1, with adapters less."""
    spec = ModelRecipe(llm="lmsys/vicuna-7b-v1.5", vision_tower=CLIP)
    for tune, tokens, tflop in ((WAYS["frozen"], 600, 16.6), (WAYS["full"], 836, 34.1)):
        blank = blank_model(spec)
        with torch.device("meta"):
            apply_tuning(blank.model, tune, OptimRecipe(lr=1e-3))
        cost = operations(blank.model).count((tokens,), targets=tokens, tiles=1)
        assert cost / 1e12 == pytest.approx(tflop, abs=0.05)


def test_windows_of_published_configurations() -> None:
    def of(name: str) -> set[int | None]:
        return set(windows(AutoConfig.for_model(**shipped()["llm"][name]["config"])))

    assert of("lmsys/vicuna-7b-v1.5") == {None}
    assert of("mistralai/Mistral-7B-v0.1") == {4096}
    assert of("mistralai/Mistral-7B-Instruct-v0.2") == {None}
    assert of("microsoft/Phi-3-mini-4k-instruct") == {2047}
    assert of("Qwen/Qwen2.5-7B-Instruct") == {None}


def test_gpt_2_has_other_names(tmp_path: Path) -> None:
    """Layers called `h`, and linear maps of a class of their own: 12 n^2 weights a layer, forward and backward."""
    sizes = {"model_type": "gpt2", "n_layer": 4, "n_embd": 64, "n_head": 4, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    model = blank_model(ModelRecipe(llm=str(tmp_path), vision_tower=CLIP)).model
    apply_tuning(model, TuneRecipe(llm="frozen", projector="full"), OptimRecipe(lr=1e-3))
    assert operations(model).per_token == 4 * 12 * 64**2 * 2 * 2
