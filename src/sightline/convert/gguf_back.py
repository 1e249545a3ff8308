"""The GGUF files of a folder -> the model that is in them, by which it is seen whether it is the one that was meant."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sightline.convert import gguf_text, gguf_vision
from sightline.convert.gguf import contents
from sightline.convert.gguf_file import Contents, gguf_package
from sightline.convert.gguf_tokenizer import IMAGE_MARKS
from sightline.convert.source import Source, checked, hub_shapes
from sightline.convert.tensors import Stored
from sightline.convert.verify import QUESTION, Proof, compare
from sightline.errors import CheckpointError
from sightline.prompt.prompter import Prompter
from sightline.prompt.render import to_text
from sightline.types import IMAGE, ImageRef, ask

NEAR = {"f32": 1e-3, "f16": 0.05, "bf16": 0.1, "q8_0": 0.5}
"""How far logits may be apart, as a share of their spread: at least twice what was measured (docs/deploy-gguf.md)."""

LOST = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-9, "q8_0": 0.014}
"""How far the numbers of a tensor may be apart, as a share of their size (2-norm).

Half of the last bit; for q8_0 half a step of 1/127 of the largest number of 32, evenly spread, where only one is large.
"""


def prove(given: Source, source: Source, folder: Path, *, quantize: str, mend_clip: bool) -> Proof:
    """Compare `given` with what is in a folder that `gguf.write` has made of `source`: tensor by tensor, and by logits.

    They are the same model, `source` in another number format perhaps. Raises CheckpointError where they differ.
    """
    back = read_back(source, folder, quantize=quantize, mend_clip=mend_clip)
    _check_numbers(source, back, LOST[quantize])
    near = NEAR[quantize] if given.dtype == source.dtype else max(NEAR[quantize], NEAR["bf16"])
    return compare(given, back, near=near, rounded=lambda: _rounded(source, quantize))


def _rounded(source: Source, quantize: str) -> Source:
    """The source with its matrices as a number format has them, which does not ask how the files were written."""
    gguf = gguf_package()
    kind = gguf.GGMLQuantizationType[quantize.upper()]
    block = gguf.GGML_QUANT_SIZES[kind][0]

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        numbers = weight.float().contiguous().numpy()
        return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(numbers, kind), kind).copy())

    tensors = {
        name: tensor.then(rounded) if len(tensor.shape) > 1 and tensor.shape[-1] % block == 0 else tensor
        for name, tensor in source.tensors.items()
    }
    return replace(source, tensors=tensors)


def _check_numbers(source: Source, back: Source, lost: float) -> None:
    for name, tensor in back.tensors.items():
        if name not in source.tensors or _is_left_out(name, back.config.vision_config.num_hidden_layers):
            continue
        meant, found = source.tensors[name].read().to(torch.float32), tensor.read()
        rounding = lost * float(meant.norm()) + 1e-7 * math.sqrt(meant.numel())
        if not (difference := float(found.sub_(meant).norm())) <= rounding:
            raise CheckpointError(
                f"{back.path}: {name} has other numbers than it should ({difference:.3g} apart, where rounding makes "
                f"{rounding:.3g}); the result was removed, please report this"
            )


def _is_left_out(name: str, layers: int) -> bool:
    return not name.startswith(gguf_text.PREFIX) and gguf_vision.vision_name(name, layers) is None


def read_back(source: Source, folder: Path, *, quantize: str, mend_clip: bool) -> Source:
    """The model in a folder that `gguf.write` has made of `source`, as its two files have it.

    Sizes, tensors, and what is subtracted from pictures are the files'; what they cannot say (the tokenizer's program,
    how tiles are cut) is the source's. Raises CheckpointError where a file says something else than was meant.
    """
    meant = contents(source, quantize=quantize, mend_clip=mend_clip)
    text, vision = (_File(folder / name, what) for name, what in meant.items())
    config = copy.deepcopy(source.config)
    _take_sizes(config.text_config, text.keys, f"{text.arch}.", gguf_text.SIZES)
    _take_rope(config.text_config, text)
    _take_sizes(config.vision_config, vision.keys, "clip.vision.", gguf_vision.SIZES)
    config.vision_config.num_hidden_layers = vision.keys["clip.vision.block_count"]
    (config.vision_feature_layer,) = vision.keys["clip.vision.feature_layer"]
    config.multimodal_projector_bias = True  # of zeros, where the model has none
    tensors = {}
    for name, shape in hub_shapes(config).items():
        tensors[name] = _text(name, text, config) if name.startswith(gguf_text.PREFIX) else _vision(name, shape, vision)
    for file in (text, vision):
        file.check_all_taken()
    if mend_clip and f"{gguf_vision.PREFIX}embeddings.class_embedding" in tensors:
        place = f"{gguf_vision.PREFIX}embeddings.position_embedding.weight"
        tensors[place] = tensors[place].then(lambda rows: rows.roll(1, 0))
    _check_prompt(text.keys, source.prompter, text.path)
    prompter = replace(source.prompter, image_processor=_seeing(source.prompter.image_processor, vision.keys))
    return checked(Source(folder, "GGUF files", config, prompter, tensors))


class _File:
    """An open file, of which each tensor is taken once."""

    def __init__(self, path: Path, meant: Contents) -> None:
        gguf = gguf_package()
        try:
            reader = gguf.GGUFReader(path)
            self.keys: Mapping[str, Any] = {field.name: field.contents() for field in reader.fields.values()}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(f"{path} cannot be read back ({error}); convert again") from error
        self.path, self.arch = path, meant.arch
        self._left = {tensor.name: tensor for tensor in reader.tensors}
        for key, value in meant.keys.items():
            if not _same(self.keys.get(key), value):
                raise CheckpointError(f"{path}: {key} is not what was meant; convert again")

    def take(self, name: str) -> Stored:
        """A tensor as float32."""
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise CheckpointError(f"{self.path} lacks the tensor {name}; convert again")
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return Stored(shape, torch.float32, _reading(tensor, shape))

    def there(self, name: str) -> bool:
        return name in self._left

    def check_all_taken(self) -> None:
        if self._left:
            some = next(iter(self._left))
            raise CheckpointError(f"{self.path} has {len(self._left)} tensors too many, such as {some}; convert again")


def _reading(tensor: Any, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        numbers = gguf_package().quants.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.array(numbers, dtype=np.float32)).reshape(shape)

    return read


def _same(found: Any, meant: Any) -> bool:
    """Whether a key has its value, as far as 32 bits hold it."""
    if isinstance(meant, float) or (isinstance(meant, list) and meant and isinstance(meant[0], float)):
        return found is not None and np.array_equal(np.asarray(found, np.float32), np.asarray(meant, np.float32))
    return type(found) is type(meant) and bool(found == meant)


def _take_sizes(config: Any, keys: Mapping[str, Any], prefix: str, table: Mapping[str, str]) -> None:
    for key, name in table.items():
        setattr(config, name, keys[prefix + key])


def _take_rope(config: Any, file: _File) -> None:
    """How positions are turned into angles, as the file has it."""
    rope, keys, prefix = dict(config.rope_parameters), file.keys, f"{file.arch}.rope."
    rope["rope_theta"] = keys[f"{prefix}freq_base"]
    for name in ("long_factor", "short_factor"):
        if file.there(place := f"rope_factors_{name.removesuffix('_factor')}.weight"):
            rope[name] = file.take(place).read().tolist()
    if "factor" in rope and f"{prefix}scaling.factor" in keys:
        rope["factor"] = keys[f"{prefix}scaling.factor"]
    config.rope_parameters = rope
    if file.there("rope_freqs.weight"):
        width = keys[f"{prefix}dimension_count"]
        plain = rope["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        theirs = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))[0]
        if not torch.allclose(plain.float() / file.take("rope_freqs.weight").read(), theirs, rtol=1e-5):
            raise CheckpointError(f"{file.path}: rope_freqs.weight makes other angles than {rope['rope_type']}")


def _text(name: str, file: _File, config: Any) -> Stored:
    text = config.text_config
    tensor = file.take(gguf_text.text_name(name, text, file.arch))
    return gguf_text.as_transformers_has_it(name, tensor, text, file.arch)


def _vision(name: str, shape: tuple[int, ...], file: _File) -> Stored:
    """What is left out because nothing looks at it is not a number here, so that it is seen if something does."""
    own = gguf_vision.vision_name(name, file.keys["clip.vision.block_count"])
    return file.take(own) if own else Stored(shape, torch.float32, lambda: torch.full(shape, math.nan))


def _seeing(image_processor: Any, keys: Mapping[str, Any]) -> Any:
    """An image processor with the mean and the deviation of a file."""
    changed = copy.deepcopy(image_processor)
    for name in ("image_mean", "image_std"):
        setattr(changed, name, keys[f"clip.vision.{name}"])
    return changed


def _check_prompt(keys: Mapping[str, Any], prompter: Prompter, path: Path) -> None:
    """Whether the chat template that is in a file writes a question about a picture as Sightline does."""
    if prompter.template.images_only:
        return  # of words there are none, but llama.cpp has no other way to ask
    written: str = prompter.tokenizer.apply_chat_template(
        [{"role": "user", "content": "".join(IMAGE_MARKS) + QUESTION}],
        chat_template=keys["tokenizer.chat_template"],
        tokenize=False,
        add_generation_prompt=True,
    )
    ours = to_text(prompter.render([ask(QUESTION, [ImageRef("")])]))
    if written.replace("".join(IMAGE_MARKS), IMAGE) != ours:
        raise CheckpointError(f"{path}: its chat template writes {written!r} instead of {ours!r}; please report this")
