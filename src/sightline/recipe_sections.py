"""The sections of a recipe: every key that a user may write, what it means, which values it takes."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# fmt: off
Template = Literal[
    "auto", "vicuna", "llava_v1", "llava_v0", "plain", "llama_2", "llava_llama_2", "mistral_instruct", "mpt",
    "chatml_direct", "llava_llama_3", "qwen_1_5", "qwen_2_5", "default", "zephyr", "internlm_chat", "internlm2_chat",
    "llama3_chat", "phi3_chat", "chatml", "qwen_chat", "llama2_chat", "code_llama_chat", "mistral", "gemma",
    "deepseek_v2", "deepseek_coder", "cohere_chat", "chatglm2", "chatglm3", "baichuan_chat", "baichuan2_chat",
    "wizardcoder", "moss_sft", "minicpm", "vicuna_v1", "wizardlm", "llava_mistral_instruct", "qwen_2", "mixtral",
    "deepseek_moe", "deepseekcoder", "minicpm3", "gemma_instruct", "mistral_direct",
]
Form = Literal[
    "llava", "sharegpt4v", "internvl", "sharegpt", "paddlemix", "mix", "openai", "messages", "texts", "query",
]
# fmt: on
"""The names of the forms of rows, those in `data/formats.py`."""
TEMPLATES: tuple[str, ...] = get_args(Template)
"""The names of the prompt templates: the tokenizer's own (auto), and those in `prompt/templates.py`."""

DEVICES = ("cpu", "cuda", "mps", "npu", "xpu")


def _device(name: str) -> str:
    kind, colon, number = name.partition(":")
    if name != "auto" and (kind not in DEVICES or (colon and not number.isdecimal())):
        raise ValueError(f"there is no device {name!r}; use auto, {', '.join(DEVICES)}, or one with a number (cuda:1)")
    return name


Device = Annotated[str, AfterValidator(_device)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelRecipe(Section):
    """What the model is put together from: `llm` and `vision_tower`, or `from_model` alone."""

    llm: str | None = None
    """The language model: a folder or a hub id."""
    vision_tower: str | None = None
    """The vision model (CLIP, SigLIP or DINOv2): a folder or a hub id."""
    from_model: str | None = None
    """A whole vision-language model to start from, instead of `llm` and `vision_tower`: a folder, a hub id or a run."""
    template: Template = "vicuna"
    """The prompt template, the same in training, chat and evaluation."""
    system: str | None = None
    """What the model is told before each conversation; null: what the template says, "": nothing."""
    image_place: Literal["front", "kept"] = "front"
    """front: the one image of a question stands in front of its words, as LLaVA and XTuner train it; kept: in place."""
    projector_from: str | None = None
    """Where the projector's weights come from: a run, a checkpoint, a model folder, a .pth or .bin file; null: new."""
    projector_depth: int = Field(2, ge=1, le=4)
    """Layers of a new projector: 1 (linear) or 2, or 3 and 4, which nothing but Sightline loads."""
    vision_feature_layer: int = -2
    """The layer of the vision tower whose output the projector sees; -1 is the last."""
    image_aspect_ratio: Literal["pad", "crop"] = "pad"
    """pad: to a square with the mean colour; crop: shorter side resized, centre kept; without effect with `next`."""
    next: bool = False
    """Make a LLaVA-NeXT (1.6), which sees each picture whole and in tiles; a `from_model` that is one stays one."""
    grid_pinpoints: list[tuple[int, int]] | None = Field(None, min_length=1)
    """Height and width in pixels of the grids that tiles are laid on; null: LLaVA-1.6's, scaled to the vision tower."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        parts = {"llm": self.llm, "vision_tower": self.vision_tower}
        if self.from_model is not None and any(parts.values()):
            raise ValueError("from_model is a whole model: leave out llm and vision_tower")
        missing = [name for name, value in parts.items() if not value]
        if self.from_model is None and missing:
            raise ValueError(f"{' and '.join(missing)} missing: give llm and vision_tower, or from_model alone")
        if self.from_model is not None and self.projector_depth != 2:
            raise ValueError("from_model brings its own projector: leave out projector_depth")
        if self.grid_pinpoints is not None and not self.next and self.from_model is None:
            raise ValueError("grid_pinpoints is given, but next is false: set next: true, or leave grid_pinpoints out")
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
    rslora: bool = False
    """Scale the adapter's output by alpha / sqrt(r) instead, which does not fade as the rank grows."""
    dora: bool = False
    """Learn the lengths of the weights' rows apart from their directions: better at low ranks, slower."""
    modules_to_save: list[str] | None = Field(None, min_length=1)
    """Names of modules that learn in full beside the adapters, such as embed_tokens or lm_head."""


class TuneRecipe(Section):
    """Which parts learn, and how."""

    llm: Literal["frozen", "full", "lora", "qlora"] = "full"
    """How the language model learns; qlora: adapters on weights of 4 bits (needs the extra `quantize`)."""
    llm_bits: Literal[4] | None = None
    """4: a frozen language model is held in 4 bits while the rest learns, as qlora does anyway; null: it is not."""
    vision_tower: Literal["frozen", "full", "lora"] = "frozen"
    """How the vision tower learns."""
    projector: Literal["full", "frozen"] = "full"
    """How the projector learns."""
    llm_lora: LoraRecipe | None = None
    """The adapter of the language model; filled in when `llm` is lora or qlora, otherwise null."""
    vision_lora: LoraRecipe | None = None
    """The adapter of the vision tower; filled in when `vision_tower` is lora, otherwise null."""
    vision_last_n: int | None = Field(None, ge=1)
    """Only the last n layers of the vision tower learn, of those that are used; null: all of them."""
    freeze_layers: int | None = Field(None, ge=1)
    """The first n layers of the language model stay as they are, and the embeddings below them; null: none."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.llm == self.vision_tower == self.projector == "frozen":
            raise ValueError("nothing learns: llm, vision_tower and projector are all frozen")
        for part, section, ways in (
            ("llm", "llm_lora", ("lora", "qlora")),
            ("vision_tower", "vision_lora", ("lora",)),
        ):
            how, given = getattr(self, part), getattr(self, section) is not None
            if given and how not in ways:
                remedy = f"set {part}: {' or '.join(ways)}, or leave {section} out"
                raise ValueError(f"{section} is given, but {part} is {how}: {remedy}")
            if not given and how in ways:
                object.__setattr__(self, section, LoraRecipe())  # the only way into a frozen model
        for key, part in (("vision_last_n", "vision_tower"), ("freeze_layers", "llm")):
            if getattr(self, key) is not None and getattr(self, part) == "frozen":
                raise ValueError(f"{key} is given, but {part} is frozen as a whole: leave {key} out")
        if self.llm_bits is not None and self.llm not in ("frozen", "qlora"):
            raise ValueError(f"llm_bits is given, but llm is {self.llm}: leave llm_bits out, or set llm: qlora")
        return self

    @property
    def quantized(self) -> bool:
        """Whether the language model is held in 4 bits."""
        return self.llm == "qlora" or self.llm_bits == 4


class DataRecipe(Section):
    """A set of data: a file by its `path`, or a known set by its name (`use`)."""

    path: str | None = None
    """A JSON or JSONL file of conversations, an InternVL meta file, a mix of LLaVA-NeXT (YAML), a Parquet file, or a
    folder of `datasets`."""
    use: str | None = None
    """The name of a known set, such as llava_v15_mix665k, instead of `path`, `images` and `form`."""
    root: str | None = None
    """The folder that known sets lie in; null: data."""
    images: str | None = None
    """The folder that the file's image paths are relative to and must not leave."""
    form: Form | None = None
    """How the rows are written; null: seen from each row."""
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
    """The most tokens of a conversation: of its text and of its images together. With CLIP-L at 336 px a picture takes
    576 of them, so 2048 leave 1472 for text (which is what XTuner's files call max_length). Text behind it is cut off;
    an image is never cut: a row whose images do not fit is a bad row."""
    pack_tokens: int | None = Field(None, ge=2)
    """Token budget of one packed micro-batch; null: max_length."""
    shuffle: bool = True
    """Another order in each epoch; false: as the rows stand in the files, for data that begin with the easy ones."""
    workers: int = Field(4, ge=0)
    """Processes per rank that load images; 0: none but the training process."""


class OptimRecipe(Section):
    """The optimiser, its schedule and the length of the run."""

    optimizer: Literal["adamw", "muon", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """adamw; muon: matrices by Muon with steps of AdamW's size, embeddings, heads and vectors by AdamW; adamw_8bit: two
    bytes per parameter instead of eight, paged: moved to the host when the GPU is full (extra `quantize`)."""
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
    neftune_alpha: float | None = Field(None, gt=0)
    """Noise on the embeddings of text while training (NEFTune), 5 to 15 as a rule; null: none."""
    epochs: float = Field(1.0, gt=0)
    """How often the data is seen."""
    max_steps: int | None = Field(None, ge=1)
    """End after this many steps, whatever the number of epochs."""


class EngineRecipe(Section):
    """Where and in which precision the run computes."""

    device: Device = "auto"
    """auto, cpu, cuda, mps, npu or xpu; auto takes the first accelerator it finds."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The precision of forward and backward; auto: bfloat16 where the device has it."""
    pure_bf16: bool = False
    """Keep matrices that learn in bfloat16 alone, without the usual copy in float32, and round their steps at random:
    half the memory for weights and gradients; with optim.optimizer: adamw_8bit a third of all that learning needs."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations twice instead of keeping them: less memory, about a third more time; auto: in as many layers
    as the memory of an accelerator asks for, and in none on the CPU."""
    compile: bool = False
    """Let torch compile the layers of the language model: less time for a step on GPUs, minutes before the first."""

    @model_validator(mode="after")
    def _bfloat16(self) -> Self:
        if self.pure_bf16 and self.dtype not in ("auto", "bfloat16"):
            raise ValueError(f"pure_bf16 computes in bfloat16, not in {self.dtype}: leave one of the two out")
        return self


class RunRecipe(Section):
    """What the run writes."""

    seed: int = Field(42, ge=0, lt=2**64)
    """Decides the order of the data and every random weight."""
    save_every: int = Field(500, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep: int = Field(2, ge=1)
    """How many checkpoints stay."""
    export: bool = True
    """Write the whole model (hf/) at the end, adapters merged; false: only what was learned (learned/)."""
    log_every: int = Field(1, ge=1)
    """Where there is no terminal: steps between two lines (at most one in ten seconds). log.jsonl has every step."""
    tensorboard: bool = False
    """Write TensorBoard files too (needs the extra `tensorboard`)."""
