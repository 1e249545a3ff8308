"""JPEGs of COCO's size -> pixels: Sightline beside transformers' own processors, alternating in one run, on one core.

    OMP_NUM_THREADS=1 python bench/pixels.py      -> a table, and bench/results/pixels.json

Both begin with the bytes of a JPEG and must end in the same numbers, to the last bit. Times are those of the processor
(CPU seconds), so that what else the machine does disturbs them little; a ratio is that of two neighbours in time.
"""

from __future__ import annotations

import io
import json
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from sightline.prompt.images import check_image, open_image
from sightline.prompt.pixels import fit_all, levels, look_up
from sightline.types import ImageRef

ROUNDS, PICTURES = 15, 8
RESULTS = Path(__file__).parent / "results" / "pixels.json"


def square(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


SIGLIP = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CASES: dict[str, tuple[Any, tuple[int, int]]] = {
    "CLIP 336, pad": (LlavaImageProcessorPil(do_pad=True, **square(336)), (640, 480)),
    "CLIP 336, pad, upright": (LlavaImageProcessorPil(do_pad=True, **square(336)), (480, 640)),
    "CLIP 336, crop": (CLIPImageProcessorPil(**square(336)), (640, 480)),
    "SigLIP 384, pad": (LlavaImageProcessorPil(do_pad=True, **square(384), **SIGLIP), (640, 480)),
    "SigLIP 384, its own": (SiglipImageProcessorPil(size={"height": 384, "width": 384}), (640, 480)),
}


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG with the spectrum of a photograph, and the size of a file of COCO (about 160 KB)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    noise = rng.normal(size=(2, 4, *frequency.shape))
    planes = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency**1.1, (height, width))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    colours = 118 + 50 * (0.9 * planes[:1] + 0.3 * planes[1:]).clip(-2.4, 2.7)
    file = io.BytesIO()
    Image.fromarray(colours.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(file, "JPEG", quality=92)
    return file.getvalue()


def milliseconds(work: Callable[[bytes], object], files: list[bytes]) -> float:
    """For one picture."""
    start = process_time()
    for file in files:
        work(file)
    return (process_time() - start) / len(files) * 1e3


def compare(processor: Any, files: list[bytes]) -> dict[str, Any]:
    table = levels(processor)

    def theirs(file: bytes) -> torch.Tensor:
        made: torch.Tensor = processor([Image.open(io.BytesIO(file))], return_tensors="pt")["pixel_values"]
        return made

    def ours(file: bytes) -> torch.Tensor:
        return fit_all([open_image(ImageRef(file))], processor)

    def and_normalised(file: bytes) -> torch.Tensor:
        return look_up(ours(file), table)

    assert all(torch.equal(theirs(file), and_normalised(file)) for file in files)
    works = {"transformers": theirs, "sightline": ours, "sightline_and_normalise": and_normalised}
    rounds = [{name: milliseconds(work, files) for name, work in works.items()} for _ in range(ROUNDS)]
    result: dict[str, Any] = {"ms": {name: middle([each[name] for each in rounds]) for name in works}}
    result["ms"]["decoding_alone"] = middle(
        [milliseconds(lambda file: open_image(ImageRef(file)), files) for _ in range(ROUNDS)]
    )
    for name in ("sightline", "sightline_and_normalise"):
        ratios = [each["transformers"] / each[name] for each in rounds]
        result[f"times_as_fast_{name}"] = [middle(ratios), round(min(ratios), 2), round(max(ratios), 2)]
    return result | {"file_kb": round(statistics.mean(map(len, files)) / 1024)}


def middle(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    print(f"{'milliseconds a picture on one core':36} transformers  sightline  times as fast     normalised here too")
    for name, (processor, size) in CASES.items():
        found[name] = case = compare(processor, [photograph(*size, seed) for seed in range(PICTURES)])
        ratios = (case["times_as_fast_sightline"], case["times_as_fast_sightline_and_normalise"])
        shown = "  ".join(f"{median:.2f} ({least:.2f} - {most:.2f})" for median, least, most in ratios)
        title = f"{name} ({size[0]}x{size[1]})"
        print(f"{title:36} {case['ms']['transformers']:12.2f} {case['ms']['sightline']:10.2f}  {shown}")
    small = [photograph(320, 240, seed) for seed in range(PICTURES)] * 20
    look = middle([milliseconds(lambda file: check_image(ImageRef(file)), small) for _ in range(ROUNDS)])
    print(f"check_image of a JPEG of 320 x 240: {look} ms")
    document = {
        "notes": "ms: CPU time a picture, median of the rounds; times as fast: median, least and most of the rounds",
        "rounds": ROUNDS,
        "versions": {name: version(name) for name in ("pillow", "numpy", "torch", "transformers")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cases": found,
        "check_image_ms": look,
        "bytes_of_a_picture_of_336_px": {"uint8": 3 * 336 * 336, "float32": 4 * 3 * 336 * 336},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
