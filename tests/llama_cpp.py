"""llama.cpp's own server, in this process (xllamacpp), asked for tokens and for the probabilities of all of them."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sightline.convert import gguf, hf
from sightline.model.assemble import assemble, make_prompter
from sightline.model.load import VLM
from sightline.model.save import save
from sightline.recipe import ModelRecipe


class LlamaCpp:
    """A model that is being served."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.props = self.ask("/props")

    def ask(self, path: str, content: dict[str, Any] | None = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def ids(self, text: str) -> list[int]:
        """Without a token that begins a text, unless the text has it."""
        tokens: list[int] = self.ask("/tokenize", {"content": text, "add_special": False, "parse_special": True})[
            "tokens"
        ]
        return tokens

    def log_probs(self, prompt: str | list[int], vocabulary: int, image: Image.Image | None = None) -> torch.Tensor:
        """Of every token as the next one, float32 [V]; `<image>` in the prompt is the place of the image."""
        asked: Any = prompt
        if image is not None:
            assert isinstance(prompt, str)
            text = prompt.replace("<image>", self.props["media_marker"])
            asked = {"prompt_string": text, "multimodal_data": [encoded(image)]}
        # It says nothing of a token that is an end, or half a character; so the next one is made to be a letter.
        letter = [[self.ids("a")[-1], 1e6]]
        said = self.ask("/completion", {"prompt": asked, "n_predict": 1, "n_probs": vocabulary, "logit_bias": letter})
        result = torch.full((vocabulary,), float("nan"))
        for token in said["completion_probabilities"][0]["top_logprobs"]:
            result[token["id"]] = token["logprob"]
        return result


def encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def assembled(folder: Path, llm: Path, tower: Path, **spec: Any) -> VLM:
    """A LLaVA of these parts, with weights as far from zero as trained ones, so that everything in it matters."""
    settings = {"llm": str(llm), "vision_tower": str(tower), "template": "vicuna", **spec}
    recipe = ModelRecipe.model_validate(settings)
    vlm = assemble(recipe, make_prompter(recipe))
    torch.manual_seed(1)
    for parameter in vlm.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save(vlm, folder, dtype=torch.float32)
    vlm.model.float().eval()
    return vlm


def written(hub: Path, folder: Path, quantize: str = "f32", *, mend_clip: bool = False) -> Path:
    """The same model as GGUF."""
    gguf.write(hf.read(hub), folder, quantize=quantize, mend_clip=mend_clip)
    return folder


@contextmanager
def serving(folder: Path, context: int = 512) -> Iterator[LlamaCpp]:
    """Serve a folder that `convert/gguf.py` wrote."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(next(folder.glob("model-*.gguf")))
    settings.mmproj.path = str(next(folder.glob("mmproj-*.gguf")))
    settings.n_ctx, settings.warmup, settings.port, settings.n_parallel = context, False, 0, 1
    settings.cpuparams.n_threads = 1
    # Else attention reads keys and values in 16 bits, and the last digits are lost.
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.verbosity = 0
    server = xllamacpp.Server(settings)
    yield LlamaCpp(server.listening_address)
    del server
