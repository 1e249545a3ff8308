"""A SentencePiece model of the BPE kind (tokenizer.model) -> the same tokenizer in the form of `tokenizers`.

The file is a protocol buffer of https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto; the
few fields that matter are read here, so neither that package nor any code of a model's author is needed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sightline.errors import ModelError

SPACE = "▁"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces."""


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePiece:
    """What of a tokenizer.model decides its ids."""

    pieces: tuple[Piece, ...]
    is_bpe: bool
    charsmap: bytes
    """Rules of Unicode normalisation, compiled; empty: texts stay as they are."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_sentencepiece(path: Path) -> SentencePiece:
    """Read a tokenizer.model; raises ModelError when it is none."""
    try:
        fields = list(_fields(path.read_bytes()))
        trainer, normalizer = (dict(_fields(_last(fields, number, b""))) for number in (2, 3))
        return SentencePiece(
            pieces=tuple(_piece(value) for number, value in fields if number == 1 and isinstance(value, bytes)),
            is_bpe=trainer.get(3, 1) == 2,
            charsmap=_bytes(normalizer.get(2, b"")),
            add_dummy_prefix=bool(normalizer.get(3, 1)),
            remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        )
    except (IndexError, ValueError, struct.error, TypeError) as error:
        raise ModelError(f"{path} is not a SentencePiece model, or damaged") from error


def to_tokenizer(model: SentencePiece) -> Tokenizer:
    """The same ids for every text; control and user-defined pieces are matched as a whole, as SentencePiece does.

    Raises ModelError for a model that is not of the BPE kind.
    """
    if not model.is_bpe:
        raise ModelError("this tokenizer.model is not of the BPE kind, as all of InternLM's are")
    symbols = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    # A prefix belongs to the beginning of a text alone, but added tokens would make a beginning behind each of them.
    inside = symbols if model.add_dummy_prefix else []
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece.text: number for number, piece in enumerate(model.pieces)},
            merges=_merges(model.pieces),
            unk_token=next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=any(piece.kind == BYTE for piece in model.pieces),
            ignore_merges=bool(inside),
        )
    )
    if inside:
        either = "|".join(re.escape(text) for text in sorted(inside, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(either), "isolated")
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(model)))
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    kinds = (UNKNOWN, CONTROL) if inside else (UNKNOWN, CONTROL, USER_DEFINED)
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind != USER_DEFINED)
            for piece in model.pieces
            if piece.kind in kinds
        ]
    )
    return tokenizer


def _normalizers(model: SentencePiece) -> Iterator[normalizers.Normalizer]:
    if model.charsmap:
        yield normalizers.Precompiled(model.charsmap)
    if model.remove_extra_whitespaces:
        yield normalizers.Strip()
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if model.add_dummy_prefix:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)


def _merges(pieces: tuple[Piece, ...]) -> list[tuple[str, str]]:
    """The pairs that BPE joins, best first: SentencePiece ranks a pair by the score of what it makes."""
    known = {piece.text: number for number, piece in enumerate(pieces) if piece.kind == NORMAL}
    made = sorted((piece for piece in pieces if piece.kind == NORMAL and len(piece.text) > 1), key=lambda p: -p.score)
    return [
        (piece.text[:at], piece.text[at:])
        for piece in made
        for at in range(1, len(piece.text))
        if piece.text[:at] in known and piece.text[at:] in known
    ]


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", _bytes(fields.get(2, b"\0\0\0\0")))
    kind = fields.get(3, NORMAL)
    return Piece(_bytes(fields[1]).decode("utf-8"), score, kind if isinstance(kind, int) else NORMAL)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer: an int, or bytes (numbers of fixed width included)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(message):
            raise ValueError("cut off")
        yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _last(fields: list[tuple[int, int | bytes]], number: int, default: bytes) -> bytes:
    return next((_bytes(value) for found, value in reversed(fields) if found == number), default)


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where bytes should be")
    return value
