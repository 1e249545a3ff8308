"""An empty folder -> good files of every form that Sightline reads, small and real, to be changed for the worse."""

from __future__ import annotations

import base64
import json
import tarfile
import zipfile
from pathlib import Path

import tiny
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM

from sightline.cli import main
from sightline.recipe import load_recipe
from sightline.train.loop import train


def make_world(world: Path) -> None:
    """Make them all, each form in a folder of its own; `model` and `run` are of a run on `made`."""
    recipe = load_recipe(str(tiny.write_recipe(world / "made", optim={"epochs": 2, "max_steps": 4})))
    train(recipe, world / "made" / "run")
    _link(world / "model", world / "made" / "run" / "hf")
    _link(world / "run", world / "made" / "run")
    for name in ("rows", "table", "recipe", "tsv", "pickle", "adapter", "archive", "images", "reply"):
        (world / name).mkdir()
    _make_images(world / "images")
    _make_rows(world / "rows")
    if main(
        [
            "data",
            "convert",
            str(world / "rows" / "llava.json"),
            str(world / "table" / "rows.parquet"),
            "--to",
            "parquet",
            "--images",
            str(world / "images"),
        ]
    ):
        raise AssertionError("the good rows cannot be converted")
    (world / "recipe" / "recipe.yaml").write_bytes((world / "made" / "recipe.yaml").read_bytes())
    _make_tsv(world / "tsv" / "questions.tsv", world / "images" / "a.jpg")
    torch.manual_seed(0)
    torch.save(
        {
            f"model.mm_projector.{n}.{kind}": torch.randn(64, *([32 if n == 0 else 64] if kind == "weight" else []))
            for n in (0, 2)
            for kind in ("weight", "bias")
        },
        world / "pickle" / "mm_projector.bin",
    )
    _make_adapter(world / "adapter")
    _make_archives(world / "archive", world / "images")
    (world / "reply" / "a.jpg").write_bytes((world / "images" / "a.jpg").read_bytes())
    said = json.dumps(
        [
            {"question": "What colour is it?", "answer": "Red, text-1."},
            {"question": "Where?", "answer": "In the middle."},
        ]
    )
    (world / "reply" / "reply.json").write_text(
        json.dumps(
            {
                "choices": [{"message": {"content": said}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 5},
            }
        )
    )


def _link(new: Path, old: Path) -> None:
    new.symlink_to(old, target_is_directory=True)


def _make_images(folder: Path) -> None:
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    exif = Image.Exif()
    exif[274] = 6
    image.save(folder / "a.jpg", exif=exif)
    image.save(folder / "progressive.jpg", progressive=True)
    image.convert("RGBA").save(folder / "b.png")
    image.convert("P").save(folder / "c.gif", save_all=True, append_images=[image.rotate(90)])
    for name in ("d.webp", "e.bmp", "f.tiff", "g.ppm"):
        image.save(folder / name)
    image.save(folder / "packed.tiff", compression="tiff_lzw")


def _make_rows(folder: Path) -> None:
    def turns(n: int) -> list[dict[str, str]]:
        return [
            {"from": "human", "value": f"<image>\nquestion text-{n}-q"},
            {"from": "gpt", "value": f"answer text-{n}-a"},
        ]

    rows = [{"id": n, "image": "a.jpg", "width": 40, "conversations": turns(n)} for n in range(4)]
    (folder / "llava.json").write_text(json.dumps(rows))
    (folder / "llava.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "text", "text": "question text-0-q"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "answer text-0-a"}]
    (folder / "openai.jsonl").write_text("\n".join([json.dumps({"messages": messages})] * 3))
    swift = {
        "query": "<image>question text-0-q",
        "response": "answer text-0-a",
        "history": [["text-1-q", "text-1-a"]],
        "images": ["a.jpg"],
    }
    (folder / "swift.jsonl").write_text("\n".join([json.dumps(swift)] * 3))
    (folder / "paddlemix.json").write_text(
        json.dumps([{"image": "a.jpg", "conversations": [["<image>\ntext-0-q", "text-0-a"]]}] * 2)
    )
    texts = [{"user": f"text-{n}-q", "assistant": f"text-{n}-a", "source": "s"} for n in range(2)]
    row = {"texts": texts, "images": ["a.jpg"], "system_prompt": "text-2-s", "note": "text-3-n"}
    (folder / "texts.jsonl").write_text("\n".join([json.dumps(row)] * 2))
    (folder / "meta.json").write_text(
        json.dumps(
            {"one": {"root": str(folder.parent / "images"), "annotation": "llava.jsonl", "repeat_time": 1, "length": 4}}
        )
    )


def _make_tsv(path: Path, image: Path) -> None:
    data = base64.b64encode(image.read_bytes()).decode()
    lines = ["index\tquestion\thint\tA\tB\tC\tanswer\tcategory\tl2-category\tsplit\timage"]
    lines += [f"{n}\tWhat text-{n}?\t\tred\tblue\tgreen\tA\tcolour\tsight\tdev\t{data}" for n in range(2)]
    path.write_text("\n".join(lines) + "\n")


def _make_adapter(folder: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(folder.parent / "made" / "llm")
    get_peft_model(llm, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)


def _make_archives(folder: Path, images: Path) -> None:
    with zipfile.ZipFile(folder / "data.zip", "w") as packed:
        for path in sorted(images.iterdir()):
            packed.write(path, f"set/{path.name}")
    for name, mode in (("data.tar", "w"), ("data.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as tape:
            tape.add(images, "set")
