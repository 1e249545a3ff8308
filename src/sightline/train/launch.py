"""NPROC_PER_NODE and its like, as XTuner's users set them -> as many processes, through torchrun."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from sightline.errors import UserError
from sightline.runtime import wanted_processes, world_size


def launched(arguments: Sequence[str]) -> int | None:
    """Run the command in as many processes as the environment asks for; None where this process is to do it.

    Returns the exit code of the launcher, which is not 0 when any process failed.
    """
    wanted = wanted_processes()
    if world_size() > 1 or wanted is None:
        return None
    if wanted.per_node < 1 or wanted.nodes < 1:
        raise UserError("NPROC_PER_NODE and NNODES count processes: set them to 1 or more, or not at all")
    meeting = (
        ["--standalone"]
        if wanted.nodes == 1
        else [f"--node-rank={wanted.node}", f"--master-addr={wanted.address}", f"--master-port={wanted.port}"]
    )
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={wanted.nodes}", *meeting]
    command += [f"--nproc-per-node={wanted.per_node}", "-m", "sightline", *arguments]
    return subprocess.run(command, check=False).returncode
