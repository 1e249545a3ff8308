"""A function in a child process: bounded, and able to work within the bounds that the user has set."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="the child is a fork on Linux alone")
@pytest.mark.parametrize("kind, most", [("RLIMIT_CPU", 600), ("RLIMIT_AS", 1 << 32), ("RLIMIT_CORE", 0)])
def test_a_bound_of_the_users_own_is_no_obstacle(kind: str, most: int) -> None:
    """As `ulimit -t 600` of the machine that a cluster is entered by."""
    program = f"""
import resource
resource.setrlimit(resource.{kind}, ({most}, {most}))
from sightline.child import in_child
with in_child(lambda text: text + "!", seconds=60, megabytes=1e5, characters=100) as ask:
    print(ask("heard"))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "heard!\n", ended.stderr
