"""Recipes: every error at once and in words, overrides typed by the field, shipped values as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from sightline.data.formats import FORMS
from sightline.errors import RecipeError
from sightline.prompt import templates
from sightline.recipe import TEMPLATES, Recipe, differences, dump_recipe, load_recipe
from sightline.recipe_errors import ELSEWHERE, key_types
from sightline.recipe_sections import Form

MINIMAL = """\
model: {llm: a, vision_tower: b}
data: [{path: x.json}]
batch: {global_batch: 8}
optim: {lr: 1e-3}
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def problems(path: str, overrides: tuple[str, ...] = ()) -> list[str]:
    """The lines of the error, files by their names alone."""
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return [line.replace(f"{Path(path).parent}/", "") for line in str(error.value).splitlines()]


# --- what a file may say ---------------------------------------------------------------------------------


def test_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.optim.lr == 0.001  # YAML 1.1 reads 1e-3 as a text
    assert recipe.optim.betas == (0.9, 0.999)
    assert recipe.tune.llm == "full" and recipe.tune.llm_lora is None
    assert recipe.data[0].path == "x.json", "relative to the current folder, so left as it is"
    with pytest.raises(ValueError, match="frozen"):
        recipe.optim.lr = 1.0  # type: ignore[misc]


def test_every_error_at_once(tmp_path: Path) -> None:
    text = """\
model: {llm: a, vision_tower: b, template: vicunia}
data: [{path: x.json, image_folder: y}]
batch: {global_batch: 8.5}
optim: {learning_rate: 3, eps: tiny, epochs: true, betas: [0.9, 2], lr: -1}
optim: {learning_rate: 3, eps: tiny, epochs: true, betas: [0.9, 2]}
tune: {llm: qlor}
run: {sede: 1}
lr: 3
optimizer: {}
zzz: 1
"""
    assert sorted(problems(write(tmp_path, text))) == sorted(
        [
            "r.yaml: optim: is there twice, in lines 4 and 5",
            'r.yaml: model.template: there is no "vicunia"; did you mean vicuna or vicuna_v1?',
            "r.yaml: data.0.image_folder: unknown key; did you mean data.0.images?",
            "r.yaml: batch.global_batch: must be a whole number, not 8.5",
            "r.yaml: optim.lr: missing",
            "r.yaml: optim.learning_rate: unknown key; did you mean optim.lr?",
            'r.yaml: optim.eps: must be a number, not "tiny"',
            "r.yaml: optim.epochs: must be a number, not true",
            "r.yaml: optim.betas.1: must be less than 1, not 2",
            "r.yaml: tune.llm: must be 'frozen', 'full', 'lora' or 'qlora', not \"qlor\"",
            "r.yaml: run.sede: unknown key; did you mean run.seed?",
            "r.yaml: lr: unknown key; did you mean optim.lr?",
            "r.yaml: optimizer: unknown key; did you mean optim.optimizer?",
            "r.yaml: zzz: unknown key; known here: model, tune, data, batch, optim, engine, run, limits",
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["model: missing", "data: missing", "batch: missing", "optim: missing"]),
        ("- 1", ["must be a mapping of sections (model, tune, data, ...)"]),
        ("model: {llm: a\noptim: 3", ["line 2, column 6: is not YAML: expected ',' or '}', but got ':'"]),
        ("a: \x00", ["is not YAML: unacceptable character #x0000: special characters are not allowed in"]),
        ("a: &x [*x]", ["is nested too deeply, or an alias contains itself"]),
        (MINIMAL.replace("[{path: x.json}]", "[]"), ["data: must have at least one entry"]),
        (MINIMAL.replace("[{path: x.json}]", "x.json"), ['data: must be a list, not "x.json"']),
        (MINIMAL.replace("{lr: 1e-3}", "3"), ["optim: must be a section (key: value), not 3"]),
        (MINIMAL.replace("1e-3", "null"), ["optim.lr: must be a number, not null"]),
        (MINIMAL.replace("1e-3", ".inf"), ["optim.lr: must be a finite number, not Infinity"]),
        (MINIMAL.replace("llm: a", "llm: 7"), ["model.llm: must be a text, not 7"]),
        (MINIMAL.replace("lr: 1e-3", "lr: 1e-3, lr: 2"), ["optim.lr: is there twice, in lines 4 and 4"]),
    ],
)
def test_what_a_file_may_not_be(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = problems(write(tmp_path, text))
    assert len(found) == len(expected)
    assert all(line.startswith(f"r.yaml: {start}") for line, start in zip(found, expected, strict=True)), found


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model", "{llm: a}", "model: vision_tower missing: give llm and vision_tower, or from_model alone"),
        ("model", "{}", "model: llm and vision_tower missing: give llm and vision_tower, or from_model alone"),
        ("model", "{from_model: m, llm: a}", "model: from_model is a whole model: leave out llm and vision_tower"),
        ("tune", "{llm: frozen, projector: frozen}", "tune: nothing learns: llm, vision_tower and projector are all"),
        ("tune", "{llm_lora: {r: 8}}", "tune: llm_lora is given, but llm is full: set llm: lora or qlora, or leave"),
        ("tune", "{llm: lora, vision_last_n: 2}", "tune: vision_last_n is given, but vision_tower is frozen"),
        ("tune", "{llm: frozen, freeze_layers: 2}", "tune: freeze_layers is given, but llm is frozen as a"),
        ("tune", "{vision_lora: {}}", "tune: vision_lora is given, but vision_tower is frozen: set vision_tower: lora"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, key: str, value: str, expected: str) -> None:
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(key)]
    found = problems(write(tmp_path, "\n".join([*lines, f"{key}: {value}"])))
    assert len(found) == 1 and found[0].startswith(f"r.yaml: {expected}")


def test_lora_is_filled_in_where_it_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    tune = load_recipe(path, ["tune.llm=lora", "tune.vision_tower=lora", "tune.vision_lora.r=8"]).tune
    assert tune.llm_lora is not None and (tune.llm_lora.r, tune.llm_lora.alpha, tune.llm_lora.dropout) == (64, 16, 0.05)
    assert tune.vision_lora is not None and tune.vision_lora.r == 8


# --- base ------------------------------------------------------------------------------------------------


def test_base_mappings_merge_and_the_rest_replaces(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "tune: {llm: lora, llm_lora: {r: 8, alpha: 3}}\nrun: {keep: 7, seed: 1}", "below.yaml")
    text = """\
base: below.yaml
data: [{path: y.json}, {path: z.json}]
tune: {llm: full, llm_lora: null}
run: {seed: 2}
"""
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.model.llm == "a"
    assert [source.path for source in recipe.data] == ["y.json", "z.json"]
    assert recipe.tune.llm_lora is None
    assert (recipe.run.keep, recipe.run.seed) == (7, 2)


def test_errors_name_the_file_that_they_are_in(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL.replace("lr: 1e-3", "clip_grad: all").replace("llm: a, ", ""), "below.yaml")
    found = problems(write(tmp_path, "base: below.yaml\noptim: {eps: small}"), ("run.keep=none",))
    assert found == [
        "below.yaml: model: llm missing: give llm and vision_tower, or from_model alone",
        "r.yaml: optim.lr: missing",
        'r.yaml: optim.eps: must be a number, not "small"',
        'below.yaml: optim.clip_grad: must be a number, not "all"',
        'command line: run.keep: must be a whole number, not "none"',
    ]


def test_one_level_of_base_only(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "base: pretrain", "below.yaml")
    [found] = problems(write(tmp_path, "base: below.yaml"))
    assert found.startswith("below.yaml: base: a base has none of its own, so ")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("pretrian", "r.yaml: base: no shipped recipe is called 'pretrian'; did you mean pretrain"),
        ("zzz", "r.yaml: base: no shipped recipe is called 'zzz'; a path must end in .yaml"),
        ("[a]", "r.yaml: base: must be a name or a path, not ['a']"),
        ("gone.yaml", "gone.yaml: cannot be read: No such file or directory"),
    ],
)
def test_bases_that_there_are_not(tmp_path: Path, base: str, expected: str) -> None:
    assert problems(write(tmp_path, f"base: {base}"))[0].startswith(expected)


def test_unknown_names() -> None:
    with pytest.raises(RecipeError, match=r"did you mean llava_v15_7b_pretrain.*sightline list-cfg"):
        load_recipe("llava_v15_7b_pretrian")
    with pytest.raises(RecipeError, match="no recipe of this name"):
        load_recipe("pretrain")  # a base, not a recipe


# --- overrides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1e-4", 0.0001),
        ("optim.lr=1", 1.0),
        ("optim.betas=[0.9, 0.95]", (0.9, 0.95)),
        ("data.0.images=123", "123"),
        ("data.0.images=null", None),
        ("data.0.images=a=b", "a=b"),
        ("data.0.head=5", 5),
        ("run.tensorboard=true", True),
        ("engine.dtype=float32", "float32"),
        ("tune.llm_lora.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("batch.pack_tokens=null", None),
    ],
)
def test_overrides_are_typed_by_the_field(tmp_path: Path, override: str, value: Any) -> None:
    text = MINIMAL.replace("[{path: x.json}]", "[{path: x.json, images: i}, {path: y}]") + "tune: {llm: lora}"
    found: Any = load_recipe(write(tmp_path, text), [override])
    for piece in override.split("=")[0].split("."):
        found = found[int(piece)] if piece.isdecimal() else getattr(found, piece)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr", "optim.lr: write key=value"),
        ("optim.lr=fast", 'optim.lr: must be a number, not "fast"'),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key; did you mean optim.lr?"),
        ("lr=1", "lr: unknown key; did you mean optim.lr?"),
        ("data.path=y", "data.path: unknown key; did you mean data.0.path?"),
        ("data.1.path=y", "data.1.path: there is no entry 1; they are counted from 0, and there are 1"),
        ("optim.lr=[", "'[' is not YAML"),
        ("optim.lr=0", "optim.lr: must be greater than 0, not 0"),
        ("model.template=null", 'model.template: there is no "null"; known: auto, vicuna, '),
        ("base=finetune", "base: unknown key"),
        ("=1", ": unknown key"),
    ],
)
def test_overrides_that_do_not_fit(tmp_path: Path, override: str, expected: str) -> None:
    found = problems(write(tmp_path, MINIMAL), (override,))
    assert len(found) == 1 and found[0].startswith(f"command line: {expected}")


# --- back to text, and compared --------------------------------------------------------------------------


def test_a_dumped_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    changes = ["tune.llm=lora", "model.llm=1e-3", "data.0.images=2024-01-01", "model.vision_tower=yes"]
    recipe = load_recipe(write(tmp_path, MINIMAL), changes)
    assert load_recipe(write(tmp_path, dump_recipe(recipe), "dumped.yaml")) == recipe


def test_identity_is_what_determines_the_loss_curve(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    before = json.loads(json.dumps(load_recipe(path).identity()))  # as a checkpoint keeps it

    assert "image_place" not in load_recipe(path, ["model.image_place=kept"]).identity()["model"], "as it was before"
    assert "pure_bf16" not in before["engine"]

    execution = ["batch.pack_tokens=64", "batch.workers=0", "engine.device=cpu", "run.keep=9", "run.save_every=1"]
    assert differences(before, load_recipe(path, execution).identity()) == []
    changes = ["optim.lr=0.002", "run.seed=3", "engine.dtype=float32", "data.0.images=i", "batch.global_batch=4"]
    assert sorted(differences(before, load_recipe(path, changes).identity())) == [
        "batch.global_batch: 8 in the checkpoint, 4 now",
        "data.0.images: null in the checkpoint, i now",
        "engine.dtype: auto in the checkpoint, float32 now",
        "optim.lr: 0.001 in the checkpoint, 0.002 now",
        "run.seed: 42 in the checkpoint, 3 now",
    ]


# --- the schema ------------------------------------------------------------------------------------------


def test_every_key_is_described() -> None:
    schema = Recipe.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    keys = [(name, field) for section in sections for name, field in section["properties"].items()]
    assert len(keys) > 40
    assert [name for name, field in keys if not field.get("description") and "$ref" not in field] == []
    assert [section["title"] for section in sections if not section.get("description")] == []


def test_names_known_elsewhere_lead_to_keys_that_there_are() -> None:
    assert set(ELSEWHERE.values()) <= {".".join(map(str, key)) for key in key_types(Recipe)}


def test_forms_agree_with_those_that_are_read() -> None:
    assert get_args(Form) == tuple(FORMS)


def test_templates_agree_with_the_prompter() -> None:
    assert set(TEMPLATES) == {"auto", *templates.TEMPLATES}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{}", "data.0: give either path, a file of rows, or use, the name of a known set"),
        ("{path: x.json, use: y}", "data.0: give either path, a file of rows, or use, the name of a known set"),
        ("{use: y, images: z, form: llava}", "data.0: y is a known set and brings its own images and form: leave out"),
        ("{path: x.json, root: z}", "data.0: root is the folder of known sets (use)"),
        ("{path: x.json, repeat: 0}", "data.0.repeat: must be greater than or equal to 1, not 0"),
        ("{path: x.json, repeat: 1.5}", "data.0.repeat: must be a whole number, not 1.5"),
        ("{path: x.json, ratio: 0}", "data.0.ratio: must be greater than 0, not 0"),
        ("{path: x.json, ratio: 1.1}", "data.0.ratio: must be less than or equal to 1, not 1.1"),
        ("{path: x.json, template: vicunja}", "data.0.template: "),
        ("{path: x.json, form: lava}", "data.0.form: must be 'llava', "),
    ],
)
def test_sets_of_data(tmp_path: Path, entry: str, expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path, MINIMAL.replace("[{path: x.json}]", f"[{entry}]")))
    assert expected in str(error.value)


def test_a_known_set_by_its_name(tmp_path: Path) -> None:
    entry = "{use: llava_v15_mix665k, root: /data, repeat: 2, ratio: 0.5, template: chatml, head: 7}"
    (found,) = load_recipe(write(tmp_path, MINIMAL.replace("[{path: x.json}]", f"[{entry}]"))).data
    assert (found.path, found.use, found.root, found.repeat, found.ratio) == (
        None,
        "llava_v15_mix665k",
        "/data",
        2,
        0.5,
    )
    assert (found.template, found.head) == ("chatml", 7)
