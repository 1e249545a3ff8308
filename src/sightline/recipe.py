"""What a user writes, checked: a YAML file and `a.b=c` overrides become a frozen `Recipe`, or all errors at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sightline.errors import RecipeError
from sightline.recipe_errors import explain, is_text, key_types, unknown_key
from sightline.recipes import COMMAND_LINE, KeyPath, dotted, dump_yaml, flatten, parse_value, read_recipe

Template = Literal["vicuna", "plain", "llama3_chat", "internlm2_chat", "phi3_chat", "chatml", "qwen_chat"]
TEMPLATES: tuple[str, ...] = get_args(Template)
"""The names of the prompt templates; `prompt/templates.py` has what is behind them."""

Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelRecipe(Section):
    """What the model is put together from: `llm` and `vision_tower`, or `from_model` alone."""

    llm: str | None = None
    """The language model: a folder or a hub id."""
    vision_tower: str | None = None
    """The CLIP vision model: a folder or a hub id."""
    from_model: str | None = None
    """A whole vision-language model to start from, instead of `llm` and `vision_tower`: a folder, a hub id or a run."""
    template: Template = "vicuna"
    """The prompt template, the same in training, chat and evaluation."""
    system: str | None = None
    """What the model is told before each conversation; null: what the template says, "": nothing."""
    projector_from: str | None = None
    """Where the projector's weights come from: a run folder, a checkpoint or a model folder; null: a new projector."""
    vision_feature_layer: int = -2
    """The layer of the vision tower whose output the projector sees; -1 is the last."""
    image_aspect_ratio: Literal["pad", "crop"] = "pad"
    """pad: to a square with the mean colour; crop: shorter side resized, centre kept."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        parts = {"llm": self.llm, "vision_tower": self.vision_tower}
        if self.from_model is not None and any(parts.values()):
            raise ValueError("from_model is a whole model: leave out llm and vision_tower")
        missing = [name for name, value in parts.items() if not value]
        if self.from_model is None and missing:
            raise ValueError(f"{' and '.join(missing)} missing: give llm and vision_tower, or from_model alone")
        return self


class LoraRecipe(Section):
    """The shape of a LoRA adapter."""

    r: int = Field(64, ge=1)
    """The rank."""
    alpha: int = Field(16, ge=1)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """The share of the adapter's inputs that is dropped in training."""
    target_modules: list[str] | None = Field(None, min_length=1)
    """Names of the linear layers that get an adapter; null: all but the head."""


class TuneRecipe(Section):
    """Which parts learn, and how."""

    llm: Literal["frozen", "full", "lora"] = "full"
    """How the language model learns."""
    vision_tower: Literal["frozen", "full", "lora"] = "frozen"
    """How the vision tower learns."""
    projector: Literal["full", "frozen"] = "full"
    """How the projector learns."""
    llm_lora: LoraRecipe | None = None
    """The adapter of the language model; filled in when `llm` is lora, otherwise null."""
    vision_lora: LoraRecipe | None = None
    """The adapter of the vision tower; filled in when `vision_tower` is lora, otherwise null."""

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        for part, section in (("llm", "llm_lora"), ("vision_tower", "vision_lora")):
            how = getattr(self, part)
            if getattr(self, section) is not None and how != "lora":
                raise ValueError(f"{section} is given, but {part} is {how}: set {part}: lora, or leave {section} out")
            if getattr(self, section) is None and how == "lora":
                object.__setattr__(self, section, LoraRecipe())  # the only way into a frozen model
        if self.llm == self.vision_tower == self.projector == "frozen":
            raise ValueError("nothing learns: llm, vision_tower and projector are all frozen")
        return self


class DataRecipe(Section):
    """A set of data: a file by its `path`, or a known set by its name (`use`)."""

    path: str | None = None
    """A JSON or JSONL file of conversations, an InternVL meta file, a Parquet file, or a folder of `datasets`."""
    use: str | None = None
    """The name of a known set, such as llava_v15_mix665k, instead of `path`, `images` and `form`."""
    root: str | None = None
    """The folder that known sets lie in; null: data."""
    images: str | None = None
    """The folder that the file's image paths are relative to and must not leave."""
    form: str | None = None
    """How the rows are written: llava, openai, paddlemix, ...; null: seen from each row."""
    template: Template | None = None
    """The prompt template of this set; null: that of the model."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """stop: a row that cannot be used ends the run before it begins; skip: it is listed in the run folder."""
    head: int | None = Field(None, ge=1)
    """Use only the first n rows; of a known set, of each of its files."""
    ratio: float = Field(1.0, gt=0, le=1)
    """Use this share of the rows, drawn by `run.seed`."""
    repeat: int = Field(1, ge=1)
    """How often each row is seen in an epoch."""

    @model_validator(mode="after")
    def _path_or_name(self) -> Self:
        if (self.path is None) == (self.use is None):
            raise ValueError("give either path, a file of rows, or use, the name of a known set")
        brought = [name for name in ("images", "form") if getattr(self, name) is not None]
        if self.use is not None and brought:
            raise ValueError(f"{self.use} is a known set and brings its own {' and '.join(brought)}: leave out")
        if self.path is not None and self.root is not None:
            raise ValueError("root is the folder of known sets (use); that of a file's images is called images")
        return self


class BatchRecipe(Section):
    """How much the model sees at once."""

    global_batch: int = Field(ge=1)
    """Conversations per step, over all ranks."""
    max_length: int = Field(2048, ge=2)
    """Tokens of a conversation, image tokens included; longer ones are cut at the end."""
    pack_tokens: int | None = Field(None, ge=2)
    """Token budget of one packed micro-batch; null: max_length."""
    shuffle: bool = True
    """Another order in each epoch; false: as the rows stand in the files, for data that begin with the easy ones."""
    workers: int = Field(4, ge=0)
    """Processes per rank that load images; 0: none but the training process."""


class OptimRecipe(Section):
    """The optimiser, its schedule and the length of the run."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw; muon: matrices by Muon with steps of AdamW's size, embeddings, heads and vectors by AdamW."""
    lr: float = Field(gt=0)
    """The highest learning rate."""
    projector_lr: float | None = Field(None, gt=0)
    """The projector's own highest learning rate; null: lr."""
    vision_lr: float | None = Field(None, gt=0)
    """The vision tower's own highest learning rate; null: lr."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's term against division by zero."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """The share of all steps in which the learning rate climbs from zero."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate goes on after the warm-up: cosine, linear and wsd (flat, then a line) end at zero."""
    clip_grad: float = Field(1.0, gt=0)
    """The largest norm of the gradient; a larger one is scaled down."""
    epochs: float = Field(1.0, gt=0)
    """How often the data is seen."""
    max_steps: int | None = Field(None, ge=1)
    """End after this many steps, whatever the number of epochs."""


class EngineRecipe(Section):
    """Where and in which precision the run computes."""

    device: str = "auto"
    """auto, cpu, cuda, mps, npu or xpu; auto takes the first accelerator it finds."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The precision of forward and backward; auto: bfloat16 where the device has it."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""


class RunRecipe(Section):
    """What the run writes."""

    seed: int = Field(42, ge=0)
    """Decides the order of the data and every random weight."""
    save_every: int = Field(500, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep: int = Field(2, ge=1)
    """How many checkpoints stay."""
    log_every: int = Field(1, ge=1)
    """Where there is no terminal: steps between two lines (at most one in ten seconds). log.jsonl has every step."""
    tensorboard: bool = False
    """Write TensorBoard files too (needs the extra `tensorboard`)."""


class Recipe(Section):
    """A training run of Sightline."""

    model: ModelRecipe
    tune: TuneRecipe = TuneRecipe()
    data: tuple[DataRecipe, ...] = Field(min_length=1)
    """The sets of data that are mixed."""
    batch: BatchRecipe
    optim: OptimRecipe
    engine: EngineRecipe = EngineRecipe()
    run: RunRecipe = RunRecipe()

    def identity(self) -> dict[str, Any]:
        """Everything that determines the loss curve, as plain JSON data."""
        plain = self.model_dump(mode="json")
        batch = {key: value for key, value in plain["batch"].items() if key not in ("pack_tokens", "workers")}
        rest = {"batch": batch, "engine": {"dtype": self.engine.dtype}, "run": {"seed": self.run.seed}}
        return {key: plain[key] for key in ("model", "tune", "data", "optim")} | rest


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a file by path, with `a.b=c` overrides typed by the field.

    Raises RecipeError with a line for everything that is wrong with it.
    """
    data, files, problems = read_recipe(name_or_path)
    keys = key_types(Recipe)
    for override in overrides:
        try:
            files[_override(data, override, keys)] = COMMAND_LINE
        except ValueError as error:
            problems.append(f"{COMMAND_LINE}: {error}")
    try:
        # As JSON, because strict JSON is what YAML means: a list may become a tuple, "3" never becomes 3.
        recipe = Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems += explain(error, keys, files)
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    return recipe


def _override(data: dict[str, Any], override: str, keys: Mapping[KeyPath, Any]) -> KeyPath:
    """Write one `a.b=c` into the data and return its path; ValueError when it does not fit."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"{override}: write key=value")
    path: KeyPath = tuple(int(piece) if piece.isdecimal() else piece for piece in key.strip().split("."))
    schema_path = tuple("*" if isinstance(piece, int) else piece for piece in path)
    if schema_path not in keys:
        raise ValueError(unknown_key(path, keys))
    inner: Any = data
    for piece, below in pairwise(path):
        if isinstance(piece, str) and isinstance(inner, dict) and inner.get(piece) is None:
            inner[piece] = [] if isinstance(below, int) else {}
        inner = _item(inner, piece, key)
    if not isinstance(inner, dict):
        _item(inner, path[-1], key)
    inner[path[-1]] = text if is_text(keys[schema_path], text) else parse_value(text)
    return path


def _item(container: Any, piece: Any, key: str) -> Any:
    if isinstance(piece, int) and isinstance(container, list) and piece >= len(container):
        raise ValueError(f"{key}: there are only {len(container)} entries, counted from 0")
    if not isinstance(container, list if isinstance(piece, int) else dict):
        raise ValueError(f"{key}: the recipe has no {'list' if isinstance(piece, int) else 'section'} here")
    return container[piece]


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads back."""
    return dump_yaml(recipe.model_dump(mode="json"))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """A line for each value in which two identities differ: `a` the checkpoint's, `b` the present one."""
    then, now = dict(flatten(a)), dict(flatten(b))
    differing = [path for path in {**then, **now} if then.get(path) != now.get(path)]
    return [f"{dotted(p)}: {_shown(then.get(p))} in the checkpoint, {_shown(now.get(p))} now" for p in differing]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
