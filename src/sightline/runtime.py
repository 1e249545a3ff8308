"""What this process runs on: the only reader of the environment. Rank, device, number format, seed, console."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from sightline import __version__
from sightline.devices import VISIBLE, Choice, Wishes, choose, look
from sightline.errors import UserError
from sightline.terminal import printable_lines

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def first_of_node() -> bool:
    """Whether this is the process that does on its machine what is to be done once."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Processes:
    """How many processes a user wants, and where those of several nodes meet; the names are XTuner's."""

    per_node: int
    nodes: int
    node: int
    address: str
    port: int


def wanted_processes() -> Processes | None:
    """What NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT ask for; None where it is one process."""
    names = {"NPROC_PER_NODE": "1", "NNODES": "1", "NODE_RANK": "0", "PORT": "29500"}
    found = {name: os.environ.get(name) or default for name, default in names.items()}
    for name, text in found.items():
        if not text.isdecimal():
            raise UserError(f"the environment says {name}={text}, which is no number")
    per_node, nodes, node, port = (int(text) for text in found.values())
    if (per_node, nodes) == (1, 1):
        return None
    return Processes(per_node, nodes, node, os.environ.get("ADDR") or "127.0.0.1", port)


console = Console(stderr=True, highlight=False, emoji=False, quiet=rank() > 0)
"""Where progress and remarks go; results go to standard output. Of several ranks only the first speaks."""


def say(text: str) -> None:
    """A remark to the user, on one line however narrow the terminal; what it repeats of others cannot steer it."""
    console.print(printable_lines(text), markup=False, soft_wrap=True)


def hub_address() -> str:
    """Where files of the Hugging Face hub are fetched: the hub itself, or the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def api_key() -> str | None:
    """The key for an OpenAI-compatible endpoint; it is never printed and never written to a file."""
    return os.environ.get("OPENAI_API_KEY", "").strip() or None


def cache_folder() -> Path:
    """Where results that can be computed again are kept: SIGHTLINE_CACHE, or `sightline` in the user's cache folder."""
    own = os.environ.get("SIGHTLINE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline"


def rank_0_first(make: Callable[[], T]) -> T:
    """Make on rank 0 what the others find stored: then on the first rank of each node, at last on all others.

    A node that shares no disk with rank 0 makes its own. Where torch.distributed is not initialised, all make at once.
    """
    if world_size() == 1:
        return make()
    import datetime

    import torch.distributed as dist

    if not dist.is_initialized():
        return make()
    # A group of its own, because looking at millions of rows takes longer than the patience of the others.
    group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=2))
    turn = 0 if rank() == 0 else 1 if first_of_node() else 2
    failed: Exception | None = None
    for now in range(3):
        if now == turn:
            try:
                made = make()
            except Exception as error:  # raised when the others, who wait here, have had their turn
                failed = error
        dist.barrier(group)
    if failed is not None:
        raise failed
    return made


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick(wishes: Wishes) -> Choice:
    """What of this machine fits the wishes; says what is used instead of what it lacks, and raises UserError else."""
    hidden = {name: os.environ[name] for name in VISIBLE.values() if name in os.environ}
    choice = choose(look(), wishes, hidden)
    for remark in choice.remarks:
        _say_once(remark)
    return choice


@cache
def _say_once(text: str) -> None:
    say(text)


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name such as `cuda`, `mps`, `npu`, `xpu` or `cpu`; `auto` is the accelerator if there is one.

    Raises UserError when the named device is not there.
    """
    import torch

    return torch.device(pick(Wishes(device=name, dtype="float32")).device)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a name; `auto` is bfloat16 where an accelerator computes in it, float32 on CPU and mps."""
    import torch

    dtype: torch.dtype = getattr(torch, pick(Wishes(device=device.type, dtype=name)).dtype)
    return dtype


def calm_tokenizers() -> None:
    """Tokenise in one thread: worker processes are forked, and a forked thread pool would hang."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices; raises UserError for a number that torch does not take."""
    import numpy as np
    import torch

    if not -(2**63) <= seed < 2**64:
        raise UserError(f"the seed {seed} is out of range: torch takes -2**63 to 2**64 - 1")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """What a result depends on: the packages and the machine."""
    packages = ("torch", "transformers", "accelerate", "peft", "tokenizers", "numpy", "pillow")
    found = {name: metadata.version(name) for name in packages if _installed(name)}
    return {"sightline": __version__, "python": platform.python_version(), "machine": platform.platform(), **found}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
