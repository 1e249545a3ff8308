"""Messages -> token ids, target mask, image places and pixels: the one way for training, chat and evaluation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sightline.errors import DataError, ModelError, is_panic, shown
from sightline.prompt.images import check_image, open_image
from sightline.prompt.own_template import AUTO, own_template
from sightline.prompt.paint import paint
from sightline.prompt.pixels import fit_all, levels, look_up
from sightline.prompt.render import render, to_text
from sightline.prompt.templates import BOS, EOS, TEMPLATES, ImagePlace, Template
from sightline.prompt.tiles import Tiles, cut_all
from sightline.types import IGNORE, IMAGE, Encoded, ImageRef, Message, Segment, Text

if TYPE_CHECKING:
    import torch
    from rich.text import Text as RichText


_MARK = re.compile(r"<\|[^<>|]+\|>")
"""How templates write their control tokens."""

_GREY = Image.new("RGB", (32, 32), (122, 116, 104))
"""A picture of CLIP's mean colour."""


@dataclass(frozen=True)
class Prompter:
    """A tokenizer, a template and an image processor that belong together."""

    tokenizer: Any
    """A fast tokenizer of transformers that knows `<image>` as one special token."""

    template: Template

    image_processor: Any
    """An image processor of transformers."""

    tokens_per_image: int
    """Features that the vision tower makes of one picture, or of one tile."""

    tiles: Tiles | None = None
    """How pictures are cut into tiles (LLaVA-NeXT); None: every picture becomes one of the tower's size."""

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError(
                "this tokenizer has no tokenizer.json; convert it to a fast one (AutoTokenizer, save_pretrained)"
            )
        if self.tokenizer.convert_tokens_to_ids(IMAGE) in (None, self.tokenizer.unk_token_id):
            raise ModelError(f"the tokenizer does not know {IMAGE}; assemble the model first")
        reason = why_not(self.template, self.tokenizer)
        if reason:
            fitting = [name for name, other in TEMPLATES.items() if other.tokens and not why_not(other, self.tokenizer)]
            others = f"; its tokens are those of {', '.join(fitting)}" if fitting else ""
            raise ModelError(
                f"the prompt template {self.template.name} does not suit this language model: {reason}{others}"
            )

    @property
    def image_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(IMAGE))

    @property
    def pad_token_id(self) -> int:
        """A token to fill batches with in generation; its positions are masked."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @cached_property
    def stop(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """What ends an answer: token ids, and strings that are more than one token."""
        strings = {self._literal(self.template.end), *map(self._literal, self.template.stop)}
        ids, longer = {self.tokenizer.eos_token_id}, set()
        for string in strings - {""}:
            encoded = self.tokenizer(string, add_special_tokens=False)["input_ids"]
            if len(encoded) == 1 and string in self._control_tokens:
                ids.add(encoded[0])
            else:
                longer.add(string)
        return tuple(sorted(i for i in ids if i is not None)), tuple(sorted(longer))

    def render(self, messages: Sequence[Message]) -> list[Segment]:
        """Write messages in the template; control tokens inside what people wrote are broken up by a space."""
        return render(
            self.template,
            messages,
            bos=self.tokenizer.bos_token or "",
            eos=self.tokenizer.eos_token or "",
            guard=self._guard,
        )

    def encode(
        self,
        messages: Sequence[Message],
        *,
        max_length: int | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Encoded:
        """Tokenise messages; the answer stays open when the last message is the user's.

        `max_length` counts all tokens, those of images included; what is longer is cut at the end. `sizes` are width
        and height of each image; where they matter and are not given, the headers are read. Raises DataError when the
        cut goes through an image.
        """
        segments = self.render(messages)
        ids, targets = self._tokenise(segments)
        images = tuple(segment.content for segment in segments if isinstance(segment.content, ImageRef))
        known: tuple[tuple[int, int], ...] = ()
        if self.tiles is not None:
            known = tuple(sizes) if sizes is not None else tuple(map(check_image, images))
        lengths = self._lengths(images, known)
        repeats = np.ones(len(ids), dtype=np.int64)
        repeats[ids == self.image_token_id] = lengths
        ids, targets = ids.repeat(repeats), targets.repeat(repeats)
        encoded = Encoded(ids=ids, labels=np.where(targets, ids, IGNORE), images=images, sizes=known)
        return encoded if max_length is None else self.cut(encoded, max_length)

    def image_tokens(self, width: int, height: int) -> int:
        """How many tokens a picture of this size takes."""
        return self.tokens_per_image if self.tiles is None else self.tiles.tokens(width, height)

    def image_lengths(self, encoded: Encoded) -> list[int]:
        """How many tokens each image of a prompt takes."""
        return self._lengths(encoded.images, encoded.sizes)

    def _lengths(self, images: Sequence[ImageRef], sizes: Sequence[tuple[int, int]]) -> list[int]:
        if self.tiles is None:
            return [self.tokens_per_image] * len(images)
        assert len(images) == len(sizes), (len(images), len(sizes))
        return [self.tiles.tokens(*size) for size in sizes]

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        """Leave out what is behind `max_length` tokens; raises DataError when an image token is among it."""
        if len(encoded.ids) <= max_length:
            return encoded
        at = encoded.ids == self.image_token_id
        if at[max_length:].any():
            raise DataError(
                f"max_length {max_length} cuts an image: the {len(at)} tokens hold {int(at.sum())} image tokens; "
                f"raise batch.max_length or shorten the row",
                "image_cut",
            )
        return replace(encoded, ids=encoded.ids[:max_length], labels=encoded.labels[:max_length])

    def controls_in(self, text: str) -> list[str]:
        """The control tokens of tokenizer and template that stand in a text; `render` breaks them up."""
        return self._control.findall(text)

    def pixels(self, images: Sequence[ImageRef]) -> torch.Tensor:
        """Decode pictures and bring them to the tower's size: uint8 [N, 3, H, W]; with tiles, N counts those.

        Float32, and ready, where the image processor has settings that only itself knows (`known_fit`).
        """
        return self._fitted([open_image(image) for image in images])

    def _fitted(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        if self.tiles is not None:
            return cut_all(pictures, self.tiles, self.image_processor)
        return fit_all(pictures, self.image_processor)

    def grey_pixels(self) -> torch.Tensor:
        """One picture of CLIP's mean colour, as `pixels` gives it."""
        return self._grey

    def grey_prompt(self) -> Encoded:
        """The tokens of that picture and nothing else, none of them a target."""
        ids = np.full(self.image_tokens(*_GREY.size), self.image_token_id, dtype=np.int64)
        return Encoded(ids, np.full_like(ids, IGNORE), (), (_GREY.size,) if self.tiles is not None else ())

    def pixel_values(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the vision tower takes: `pixels` rescaled and normalised on their device, float32 [N, 3, H, W]."""
        return pixels if pixels.is_floating_point() else look_up(pixels, self._levels)

    @cached_property
    def _grey(self) -> torch.Tensor:
        return self._fitted([_GREY])

    @cached_property
    def _levels(self) -> torch.Tensor:
        return levels(self.image_processor)

    def explain(self, encoded: Encoded, *, marks: tuple[str, str] = ("", "")) -> RichText:
        """The tokens as coloured text: targets green and between `marks`, image tokens folded, the rest dim."""
        return paint(encoded, self._decode, self.image_token_id, self.image_lengths(encoded), marks)

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _tokenise(self, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Ids as the tokenizer gives them for the whole text, so that every other program sees the same; and the mask.

        At each border of a target the ids up to there must be the beginning of the ids that go on, because generation
        starts from them. Where the tokenizer would merge across the border, text is cut in two.
        """
        ids: list[int] = []
        mask: list[bool] = []
        text, piece = "", list[int]()
        for target, more in _pieces(segments):
            longer = self._beginning(more) if not text and more.endswith(IMAGE) else self._ids(text + more)
            if longer[: len(piece)] != piece:
                ids, text, piece, longer = ids + piece, "", [], self._ids(more)
            mask += [target] * (len(longer) - len(piece))
            text, piece = text + more, longer
            last = self._control_ids.get(piece[-1]) if piece else None
            if last is not None and text.endswith(last):
                # Nothing merges with a control token, so what stands before it need not be looked at again.
                ids, text, piece = ids + piece[:-1], last, piece[-1:]
        return np.array(ids + piece, dtype=np.int64), np.array(mask, dtype=bool)

    def _beginning(self, text: str) -> list[int]:
        """The ids up to the first image: where it stands in front, the same in each row, system prompt and all."""
        known = self._beginnings.get(text)
        if known is None:
            known = self._ids(text)
            if len(self._beginnings) < 64:
                self._beginnings[text] = known
        return known

    @cached_property
    def _beginnings(self) -> dict[str, list[int]]:
        return {}

    def _ids(self, text: str) -> list[int]:
        backend = self.tokenizer.backend_tokenizer
        changed = backend.truncation or backend.padding or backend.encode_special_tokens
        try:
            if changed or self.tokenizer.split_special_tokens:
                result: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                # The same without what transformers wraps around it, 50 us a call: a data set takes millions of calls.
                result = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError:
            raise DataError("a text holds half a surrogate pair (one of \\ud800 to \\udfff alone)") from None
        except BaseException as error:
            if is_panic(error):  # a regular expression of its own that finds no end
                raise DataError(f"the tokenizer gives up on a text ({error}); shorten or drop it") from error
            raise
        return result

    def _literal(self, string: str) -> str:
        return string.replace(BOS, self.tokenizer.bos_token or "").replace(EOS, self.tokenizer.eos_token or "")

    @cached_property
    def _control_tokens(self) -> frozenset[str]:
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return frozenset({IMAGE, *special, *self.tokenizer.all_special_tokens, *self.template.tokens})

    @cached_property
    def _control_ids(self) -> dict[int, str]:
        return {self.tokenizer.convert_tokens_to_ids(token): token for token in self._control_tokens}

    @cached_property
    def _control(self) -> re.Pattern[str]:
        # A template's marks too, where the tokenizer knows them as words only: they would still begin another turn.
        marks = {mark for string in self.template.strings() for mark in _MARK.findall(string)}
        longest_first = sorted(self._control_tokens | marks, key=len, reverse=True)
        return re.compile("|".join(re.escape(token) for token in longest_first))

    def _guard(self, text: str) -> str:
        return self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def template_named(
    name: str, system: str | None = None, *, tokenizer: Any = None, image_place: ImagePlace = "front"
) -> Template:
    """A template by its name, with another system prompt if one is given; `auto` is the tokenizer's own.

    Raises ModelError naming the known ones, or with the reason why the tokenizer's own cannot be used.
    """
    if name == AUTO and tokenizer is not None:
        template = own_template(tokenizer)
    elif name in TEMPLATES:
        template = TEMPLATES[name]
    else:
        near = difflib.get_close_matches(name, TEMPLATES, n=5, cutoff=0.0)
        raise ModelError(f"unknown prompt template {shown(name)}; nearest: {', '.join(near)} (all: docs/templates.md)")
    if system and template.system is None:
        raise ModelError(f"model.system: the prompt template {name} has no place for a system prompt")
    template = replace(template, image_place=image_place)
    return template if system is None else replace(template, default_system=system)


def why_not(template: Template, tokenizer: Any) -> str:
    """Why a tokenizer cannot carry a template; empty where it can."""
    if tokenizer.eos_token is None and any(EOS in string for string in template.strings()):
        return "an answer ends with the tokenizer's end-of-text token, and it has none"
    missing = [token for token in template.tokens if not _is_one_token(token, tokenizer)]
    return f"its tokenizer has no token {' and no '.join(missing)}" if missing else ""


def _is_one_token(token: str, tokenizer: Any) -> bool:
    number = tokenizer.convert_tokens_to_ids(token)
    # In a vocabulary, but never made: SentencePiece has such pieces, for pieces of other ones.
    return (
        number not in (None, tokenizer.unk_token_id)
        and number in tokenizer(token, add_special_tokens=False)["input_ids"]
    )


def _pieces(segments: Sequence[Segment]) -> Iterator[tuple[bool, str]]:
    """Texts with one target mark each, as long as can be, but that each image ends one."""
    for target, run in groupby(segments, lambda segment: segment.target and isinstance(segment.content, Text)):
        *images, last = to_text(tuple(run)).split(IMAGE)
        yield from ((target, text + IMAGE) for text in images)
        if last:
            yield target, last
