"""The keys that each form reads, and those that need not be read: what else stands in a row is told, or refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sightline.errors import shown


@dataclass(frozen=True, slots=True)
class Keys:
    """What a form reads."""

    turns: tuple[str, ...]
    """Of a row: where its turns stand; the first that is there, or all of them where they are parts of a question."""
    turn: frozenset[str] = frozenset()
    """Of a turn; empty where turns are no objects."""


IMAGES = ("image", "images")
"""Of a row, and of a turn that shows images of its own."""
SYSTEM = ("system", "system_prompt", "system_message")
"""Of a row: the system prompt, by any of these names."""
BESIDE = frozenset({*IMAGES, *SYSTEM})
"""What each form reads beside the turns."""

KEYS: dict[str, Keys] = {
    "llava": Keys(("conversations", "conversation", "messages"), frozenset({"from", "value", "text", *IMAGES})),
    "paddlemix": Keys(("conversations", "conversation")),
    "mix": Keys(("conversations", "conversation"), frozenset({"from", "value", "text", *IMAGES})),
    "openai": Keys(("messages", "conversations", "conversation"), frozenset({"role", "content", *IMAGES})),
    "texts": Keys(
        ("texts", "conversation", "conversations"), frozenset({"user", "human", "assistant", "gpt", *IMAGES})
    ),
    "query": Keys(("query", "response", "history")),
}
"""By the name of the function that reads the form."""

PLAIN = frozenset(
    """
    id idx index uid uuid image_id question_id conversation_id sample_id dialog_id video_id source data_source
    dataset dataset_name dataset_id data_type origin url coco_url flickr_url license category categories task
    task_type type subset split topic tags language lang model width height width_list height_list image_size
    image_sizes image_wh size sizes detail name format length num_tokens num_turns num_images hash md5 sha256 date
    created created_at timestamp version score scores quality relevance_ratings relevance_min
    visual_dependency_ratings visual_dependency_min image_correspondence_ratings image_correspondence_min
    formatting_ratings formatting_min
    """.split()  # noqa: SIM905 - a column of sixty lines is no easier to read
)
"""Metadata that say where something comes from, how large or how good it is: passed over in rows, turns and images."""

WEIGHTS: Mapping[str, bool] = {
    **dict.fromkeys(("loss", "weight", "loss_weight", "loss_scale", "loss_mask", "train", "training"), True),
    **dict.fromkeys(("trainable", "train_on_turn", "learn", "train_detail", "sample_weight"), True),
    **dict.fromkeys(("mask", "masked", "is_masked", "ignore", "ignore_loss", "skip"), False),
}
"""Of a turn: how programs say which answers are learned -> the value by which they all are."""
_OF_ROWS = ("loss", "weight", "loss_weight", "loss_scale", "loss_mask", "sample_weight")
_ALL = ("", "all", "true", "1", "1.0")

_PICTURE_KEY = re.compile(
    r"(?:[a-z]+_)?(?:img|image|picture|photo|pic)s?(?:_?(?:path|file|filename|name|url|src|data|bytes|base64)s?)?_?\d*",
    re.IGNORECASE,
)
_PICTURE_NAME = re.compile(r"[^\n]{1,4000}\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|jp2)", re.IGNORECASE)
_BASE64_BEGINS = {"/9j/": "jpeg", "iVBORw0KGgo": "png", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp", "SUkqA": "tiff"}
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_SHORTEST_BASE64 = 128
"""Characters; no file of an image has fewer bytes than they hold, while a path may begin as base64 does."""
_MOST_KEYS = 8


def unread(row: Mapping[str, Any], used: frozenset[str]) -> list[str]:
    """The keys of a row that nothing reads and that are no plain metadata; null stands for absent."""
    return [key for key in row if key not in used and key not in PLAIN and row[key] not in (None, "", [], {})]


def told(keys: Iterable[str], used: Iterable[str], where: str = "") -> Iterator[str]:
    """A line for each key that is not read, with the nearest that is; the same for all rows that have it."""
    every, known = list(dict.fromkeys(keys)), list(used)
    for key in every[:_MOST_KEYS]:
        near = nearest(key, known)
        yield f"{shown(key)}{where} is not read" + (f"; did you mean {shown(near)}?" if near else "")
    if len(every) > _MOST_KEYS:
        yield f"further keys{where} are not read"


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The key that was perhaps meant."""
    if _PICTURE_KEY.fullmatch(key):
        return "images" if key.lower().rstrip("0123456789_").endswith("s") else "image"
    others = sorted(name for name in known if name != key)
    close = difflib.get_close_matches(key.lower()[:64], others, n=1, cutoff=0.75)
    return close[0] if close else None


def is_picture(key: str, value: Any) -> bool:
    """Whether what stands under a key looks like an image, or a list of them: by its form, or by its name."""
    if isinstance(value, list):
        return bool(value) and is_picture(key, value[0])
    if isinstance(value, dict):
        return any(is_picture(key, value[name]) for name in ("bytes", "path", "url") if value.get(name))
    named = _PICTURE_KEY.fullmatch(key) is not None
    if isinstance(value, bytes):
        return named or value.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF"))
    if not isinstance(value, str) or not value:
        return False
    if value.startswith("data:image/") or base64_type(value) or _PICTURE_NAME.fullmatch(value[:4096]):
        return True
    return named and len(value) < 4096 and not re.search(r"\s", value)


def base64_type(value: str) -> str | None:
    """`png`, `jpeg`, ... where a text is an image file in base64, which no path is; None where it is not."""
    if len(value) < _SHORTEST_BASE64:
        return None
    kind = next((kind for begins, kind in _BASE64_BEGINS.items() if value.startswith(begins)), None)
    return kind if kind is not None and _BASE64.fullmatch(value) else None


def chooses(given: Mapping[str, Any], of_row: bool = False) -> str | None:
    """The key that says which answers are learned, where it does not say: all of them."""
    for key in _OF_ROWS if of_row else WEIGHTS:
        if (value := given.get(key)) is None:
            continue
        if isinstance(value, str):
            if WEIGHTS[key] and value.lower() not in _ALL:
                return key
        elif value != WEIGHTS[key] and (WEIGHTS[key] or isinstance(value, bool | int | float | list)):
            return key
    return None
