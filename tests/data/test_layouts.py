"""The known sets: complete, in the trees that their documentation draws, readable by recipes."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

from sightline.data import layouts
from sightline.data.formats import FORMS
from sightline.data.layouts import KnownFile, find_set, known_entries, known_sets
from sightline.errors import UserError
from sightline.recipes import read_yaml, recipe_folder

PARTS = {part.name: part for known in known_sets().values() for part in known.parts}


def lines(text: str) -> list[str]:
    return text.split()


# The trees of XTuner's documentation of LLaVA-Llama-3-8B ("Data Preparation").
LLAVA_TREE = lines("""
LLaVA-Pretrain/blip_laion_cc_sbu_558k.json LLaVA-Pretrain/blip_laion_cc_sbu_558k_meta.json LLaVA-Pretrain/images
LLaVA-Instruct-150K/llava_v1_5_mix665k.json
llava_images/coco/train2017 llava_images/gqa/images llava_images/ocr_vqa/images llava_images/textvqa/train_images
llava_images/vg/VG_100K llava_images/vg/VG_100K_2
""")
SHAREGPT4V_TREE = lines("""
share-captioner_coco_lcs_sam_1246k_1107.json sharegpt4v_instruct_gpt4-vision_cap100k.json
sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json
data/sam/images data/share_textvqa/images data/web-celebrity/images data/web-landmark/images data/wikiart/images
data/llava/llava_pretrain/images->../../../../llava_data/LLaVA-Pretrain/images
data/coco->../../llava_data/llava_images/coco data/gqa->../../llava_data/llava_images/gqa
data/ocr_vqa->../../llava_data/llava_images/ocr_vqa data/textvqa->../../llava_data/llava_images/textvqa
data/vg->../../llava_data/llava_images/vg
""")
INTERNVL_TREE = lines("""
data/ai2d data/chartqa data/docvqa/test data/docvqa/train data/docvqa/val data/dvqa/images data/synthdog-en/images
data/geoqa+/images data/llava/llava_pretrain/images->../../../../llava_data/LLaVA-Pretrain/images
data/coco->../../llava_data/llava_images/coco data/gqa->../../llava_data/llava_images/gqa
data/ocr_vqa->../../llava_data/llava_images/ocr_vqa data/textvqa->../../llava_data/llava_images/textvqa
data/vg->../../llava_data/llava_images/vg data/sam->../../sharegpt4v/data/sam
data/share_textvqa->../../sharegpt4v/data/share_textvqa data/web-celebrity->../../sharegpt4v/data/web-celebrity
data/web-landmark->../../sharegpt4v/data/web-landmark data/wikiart->../../sharegpt4v/data/wikiart
""")
# File and folder of images of XTuner's recipe of InternVL-SFT, in its order.
INTERNVL_FILES = lines("""
sharegpt4v_instruct_gpt4-vision_cap100k.jsonl data
llava_instruct_150k_zh.jsonl data/coco
sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.jsonl data
dvqa_train_200k.jsonl data/dvqa
chartqa_train_18k.jsonl data/chartqa
ai2d_train_12k.jsonl data/ai2d
docvqa_train_10k.jsonl data/docvqa
geoqa+.jsonl data/geoqa+
synthdog_en.jsonl data/synthdog-en
""")


@pytest.mark.parametrize(
    ("folder", "tree"),
    [("llava_data", LLAVA_TREE), ("sharegpt4v", SHAREGPT4V_TREE), ("internvl_sft", INTERNVL_TREE)],
)
def test_the_trees_that_users_know(folder: str, tree: list[str]) -> None:
    def up_and_down(target: str, place: str) -> str:
        """How the documentation writes a link: up to the root of all data, and down again."""
        return "../" * (len(PurePosixPath(place).parts) - 1) + target

    drawn = {f"{folder}/{line}" for line in tree}
    links = {f"{p.place}->{up_and_down(p.link, p.place)}" for p in PARTS.values() if p.link}
    assert drawn <= {part.place for part in PARTS.values()} | links


def test_the_nine_files_of_internvl() -> None:
    files = find_set("internvl_sft").files
    expected = [f"internvl_sft/{word}" for word in INTERNVL_FILES]
    assert [word for file in files for word in (file.path, file.images)] == expected
    assert set(PARTS["internvl_jsonl"].take) == {PurePosixPath(file.path).name for file in files}
    assert (
        sum(file.rows or 0 for file in files) == 1_267_819
    )  # "approximately 1.2M" there, 39,620 steps of 32 in XTuner


def test_numbers_of_the_published_runs() -> None:
    (pretrain,), (finetune,) = find_set("llava_pretrain_558k").files, find_set("llava_v15_mix665k").files
    assert (pretrain.rows, finetune.rows) == (558_128, 665_298)
    assert -(-665_298 // 128) == 5198 and -(-558_128 // 256) == 2181


def test_the_shipped_recipes_name_known_sets() -> None:
    used = set()
    for path in sorted(recipe_folder().rglob("*.yaml")):
        data, _ = read_yaml(path, path.stem)
        used |= {entry["use"] for entry in data.get("data", ()) if "use" in entry}
    assert {"llava_pretrain_558k", "llava_v15_mix665k", "refcoco", "internvl_sft"} <= used
    assert all(known_entries(name, "data") for name in used)


def test_every_part_can_come_from_somewhere() -> None:
    for part in PARTS.values():
        sources = [bool(part.url), bool(part.link), bool(part.by_hand), bool(part.made_by)]
        assert sum(sources) == 1, part.name
        assert part.link or (part.about and (part.licence or part.made_by)), part.name
        if part.url:
            assert "/blob/" not in part.url and part.url.startswith(("http://", "https://"))
            assert not part.is_folder or part.ending, f"{part.name}: what kind of archive is it?"
        if part.link:
            assert any(other.place.startswith(part.link) for other in PARTS.values() if not other.link), part.name
        assert not part.checksum or re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", part.checksum)


def test_no_two_parts_share_a_place_and_none_leaves_the_root() -> None:
    places = [part.place for part in PARTS.values()]
    assert len(set(places)) == len(places)
    names = [*places, *(f.path for s in known_sets().values() for f in s.files)]
    assert not any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names)


def test_each_set_brings_what_its_links_lead_to() -> None:
    for known in known_sets().values():
        places = [part.place for part in known.parts if not part.link]
        for part in known.parts:
            if part.link:
                assert any(place.startswith(part.link) for place in places), f"{known.name}: {part.name}"


def test_each_file_of_rows_comes_with_its_set() -> None:
    for known in known_sets().values():
        brought = {part.place for part in known.parts}
        brought |= {f"{part.place}/{name}" for part in known.parts for name in part.take}
        assert {file.path for file in known.files} <= brought
        assert {file.form for file in known.files} <= set(FORMS)


def test_entries_for_a_recipe() -> None:
    assert known_entries("llava_v15_mix665k", "my/data") == (
        KnownFile(
            path="my/data/llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
            images="my/data/llava_data/llava_images",
            form="llava",
            rows=665_298,
        ),
    )
    assert len(known_entries("internvl_sft", "data")) == 9


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("llava_v15_mix655k", "did you mean llava_v15_mix665k"),
        ("LLaVA-v15-mix665k", "did you mean llava_v15_mix665k"),
        ("mix665k", "sharegpt4v_mix665k"),
        ("internvl", "did you mean .*internvl_sft"),
        ("zzz", "known: .*llava_pretrain_558k"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        known_entries(name, "data")


def test_a_benchmark_is_nothing_to_train_on() -> None:
    with pytest.raises(UserError, match=r"holds no rows to train on; those that do: .*refcoco"):
        known_entries("mmbench_dev_en", "data")


def test_the_files_are_part_of_the_package() -> None:
    paths = list((Path(layouts.__file__).parent / "known").glob("*.yaml"))
    assert {path.stem for path in paths} == {"llava", "sharegpt4v", "internvl_sft", "refcoco", "mmbench"}
    assert [problem for path in paths for problem in read_yaml(path, path.name)[1]] == []
