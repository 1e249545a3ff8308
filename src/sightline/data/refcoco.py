"""From RefCOCO's annotations (refs(...).p, instances.json) to XTuner's train.json and to rows in the LLaVA form."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from sightline.errors import DataError, UserError
from sightline.files import whole_file
from sightline.prompt.decoding import open_file
from sightline.runtime import say
from sightline.unpickler import BoundedUnpickler

SETS = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
"""The three sets and whose split of them XTuner trains on."""

FOLDER = "coco/train2017"
"""Where the records say the pictures are, below the folder of all images."""

REFER = (
    "[refer] {}",
    "[refer] give me the location of {}",
    "[refer] where is {} ?",
    "[refer] from this image, tell me the location of {}",
    "[refer] the location of {} is",
    "[refer] could you tell me the location for {} ?",
    "[refer] where can I locate the {} ?",
)
"""XTuner's prompts from a phrase to its box."""

IDENTIFY = (
    "[identify] {}",
    "[identify] what object is in this location {}",
    "[identify] identify the object present at this location {}",
    "[identify] what is it in {}",
    "[identify] describe this object in {}",
    "[identify] this {} is",
    "[identify] the object in {} is",
)
"""XTuner's prompts from a box to its phrase."""

LLAVA_REFER = ("Please provide the bounding box coordinate of the region this sentence describes: {}",)
LLAVA_IDENTIFY = ("Please provide a short description for this region: {}",)
"""Those of LLaVA 1.5's mixture."""

WRITTEN = ("train.json", "refer.jsonl", "identify.jsonl")

Record = dict[str, Any]
"""id, image, sents (a phrase), bbox ([x, y, w, h] in pixels), height, width."""


class _PlainUnpickler(BoundedUnpickler):
    """Builds lists, dicts, strings and numbers; a pickle that names a class or a function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only plain values are read")


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain values, also one written by Python 2; DataError for any other."""
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path} is not a pickle of plain values: {error}") from None


def read_records(ann_path: Path, image_path: Path) -> list[Record]:
    """The training records of the three sets, one for each phrase, those of a set with the same id only once.

    The sizes are those of the pictures. Raises DataError for a missing or foreign file and for missing pictures.
    """
    sizes: dict[str, tuple[int, int]] = {}
    records: dict[str, Record] = {}
    missing = set()
    for name, split in SETS:
        for image, box, phrases in _train_refs(ann_path / name, split):
            file = image_path / image
            if image not in sizes and image not in missing:
                size = _size(file)
                if size is None:
                    missing.add(image)
                else:
                    sizes[image] = size
            if image in missing:
                continue
            width, height = sizes[image]
            for phrase in phrases:
                key = f"{name}-{split}-{image.removesuffix('.jpg')}-{'_'.join(phrase.split(' '))}"
                record = {"id": key, "image": f"{FOLDER}/{image}", "sents": phrase, "bbox": box}
                records.setdefault(key, {**record, "height": height, "width": width})
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise DataError(f"{image_path} lacks {len(missing):,} of the pictures, such as {some}; is it COCO train2017?")
    return list(records.values())


def _train_refs(folder: Path, split: str) -> Iterator[tuple[str, list[float], list[str]]]:
    """Name of the picture, box in pixels, phrases, of each object of the training split."""
    refs, instances = folder / f"refs({split}).p", folder / "instances.json"
    loaded = load_plain_pickle(refs)
    try:
        annotations = json.loads(instances.read_text(encoding="utf-8"))["annotations"]
        if any(not math.isfinite(float(value)) for annotation in annotations for value in annotation["bbox"]):
            raise ValueError("a box has a number that is none")
        boxes = {annotation["id"]: [float(value) for value in annotation["bbox"]] for annotation in annotations}
        for ref in loaded:
            if ref["split"] == "train":
                x, y, width, height = boxes[ref["ann_id"]]
                phrases = [str(sentence["raw"]) for sentence in ref["sentences"]]
                yield f"{int(ref['image_id']):012d}.jpg", [x, y, width, height], phrases
    except OSError as error:
        raise DataError(f"{instances} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder}: not RefCOCO's annotations ({type(error).__name__}: {error})") from None


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height from the header; None where there is no such file."""
    try:
        with open_file(path) as picture:
            return picture.size
    except FileNotFoundError:
        return None
    except (Image.DecompressionBombError, UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is not a readable picture: {error}") from None


def xtuner_box(record: Record) -> str:
    """`{<x1><y1><x2><y2>}` in hundredths of the picture's sides, cut to integers, as XTuner writes it."""
    x, y, width, height = record["bbox"]
    sides = record["width"], record["height"]
    corners = (x / sides[0], y / sides[1], (x + width) / sides[0], (y + height) / sides[1])
    return "{" + "".join(f"<{int(corner * 100)}>" for corner in corners) + "}"


def llava_box(record: Record) -> str:
    """`[x1, y1, x2, y2]` from 0 to 1 of the picture padded to a square, as in LLaVA 1.5's mixture (LLaVA issue 606)."""
    x, y, width, height = record["bbox"]
    side = max(record["width"], record["height"])
    left, top = (side - record["width"]) // 2, (side - record["height"]) // 2
    corners = (left + x, top + y, left + x + width, top + y + height)
    return "[" + ", ".join(str(round(corner / side, 2)) for corner in corners) + "]"


def draw_rows(records: Sequence[Record], inverse: bool, count: int, boxes: str, rng: random.Random) -> Iterator[Record]:
    """`count` rows in the LLaVA form, drawn from all pairs of a record and a prompt, none twice.

    `inverse`: from the box to the phrase. `boxes`: xtuner or llava, the way of writing a box and its prompts.
    """
    prompts = {
        ("xtuner", False): REFER,
        ("xtuner", True): IDENTIFY,
        ("llava", False): LLAVA_REFER,
        ("llava", True): LLAVA_IDENTIFY,
    }[boxes, inverse]
    pairs = range(len(records) * len(prompts))
    for pair in rng.sample(pairs, min(count, len(pairs))):
        record, prompt = records[pair // len(prompts)], prompts[pair % len(prompts)]
        box = xtuner_box(record) if boxes == "xtuner" else llava_box(record)
        given, answer = (box, record["sents"]) if inverse else (record["sents"], box)
        turns = [
            {"from": "human", "value": f"<image>\n{prompt.format(given)}"},
            {"from": "gpt", "value": answer},
        ]
        yield {"id": record["id"], "image": record["image"], "conversations": turns}


def arguments(parser: argparse.ArgumentParser) -> None:
    coco = f"data/llava_data/llava_images/{FOLDER}"
    add = parser.add_argument
    add("--ann-path", default="data/refcoco_annotations", help="folder with refcoco, refcoco+ and refcocog")
    add("--image-path", default=coco, help="folder of the COCO pictures")
    add("--save-path", default="data/llava_data/RefCOCOJson", help="folder for the results (%(default)s)")
    add("--rows", type=int, default=70_000, metavar="N", help="rows of each file to train on (70000, as XTuner draws)")
    add(
        "--boxes", choices=("xtuner", "llava"), default="xtuner", help="how boxes are written, and the prompts (xtuner)"
    )
    add("--seed", type=int, default=0, help="which rows are drawn (0)")


def run(args: argparse.Namespace) -> None:
    """Turn RefCOCO, RefCOCO+ and RefCOCOg (their training splits unc, unc, umd) into files to train on.

    train.json       XTuner's file: a record for each phrase, with its box in pixels
    refer.jsonl      rows in the LLaVA form: where is what the phrase says
    identify.jsonl   rows in the LLaVA form: what is in the box

    --boxes xtuner: 7 + 7 prompts, boxes as {<x1><y1><x2><y2>} in hundredths of the sides of the picture.
    --boxes llava: LLaVA 1.5's two prompts, boxes as [x1, y1, x2, y2] from 0 to 1 of the picture padded to a square.
    """
    if args.rows < 0:
        raise UserError(f"--rows {args.rows}: must be 0 or more")
    folder = Path(args.save_path)
    for name in WRITTEN:
        if os.path.lexists(folder / name):
            raise UserError(f"{folder / name} is there already; remove it, or choose another --save-path")
    records = read_records(Path(args.ann_path), Path(args.image_path))
    if not records:
        raise DataError(f"{args.ann_path}: no training records in it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_all(folder, records, args)
    except OSError as error:
        at = error.filename if isinstance(error, FileExistsError) else folder
        raise UserError(f"--save-path {at} cannot be written: {error.strerror}") from None


def _write_all(folder: Path, records: list[Record], args: argparse.Namespace) -> None:
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    _write(folder / "train.json", ["[\n", lines, "\n]\n"])
    say(f"{folder / 'train.json'}: {len(records):,} records")
    spoken = [record for record in records if record["sents"].strip()]
    if len(spoken) < len(records):
        say(f"{len(records) - len(spoken):,} of them have no word, and make no rows")
    rng = random.Random(args.seed)
    for name, inverse in (("refer.jsonl", False), ("identify.jsonl", True)):
        rows = list(draw_rows(spoken, inverse, args.rows, args.boxes, rng))
        if rows:
            _write(folder / name, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            say(f"{folder / name}: {len(rows):,} rows")


def _write(path: Path, pieces: Iterable[str]) -> None:
    with whole_file(path) as file:
        file.writelines(piece.encode(errors="backslashreplace") for piece in pieces)
