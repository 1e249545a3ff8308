"""A name on the Hugging Face hub -> whether it can be had: from the cache, or from the hub, which is asked once."""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

import huggingface_hub.constants

from sightline.connections import shown_url
from sightline.errors import ModelError
from sightline.runtime import hub_address, say

SECONDS = 8.0
"""In which the hub must have given a sign of life; the library itself would try for more than a minute."""


def check_at_hand(name: str) -> None:
    """Raise ModelError where a hub id is not in the cache and the hub cannot be reached; say so where it is."""
    place = Path(huggingface_hub.constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
    cached = any(place.glob("*/*"))
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        if not cached:
            raise ModelError(
                f"no folder {name} here, and the hub's cache does not hold it, which alone is used (HF_HUB_OFFLINE): "
                f"name a local folder, or unset it"
            )
        return
    if (reason := _unreachable(hub_address())) is None:
        return
    hub = shown_url(hub_address())  # HF_ENDPOINT may hold a password
    if not cached:
        raise ModelError(
            f"no folder {name} here, and the hub {hub} cannot be reached ({reason}): name a local folder, or "
            f"a mirror by HF_ENDPOINT; with HF_HUB_OFFLINE=1 only the cache is used"
        )
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # or each file would be asked for again, five times
    say(f"the hub {hub} cannot be reached ({reason}): {name} is taken from its cache")


@cache
def _unreachable(address: str) -> str | None:
    """Why nobody answers there; None where somebody does, whatever the answer is."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "sightline"})
            with urllib.request.urlopen(request, timeout=SECONDS):
                found.append(None)
        except urllib.error.HTTPError:
            found.append(None)
        except (ValueError, http.client.InvalidURL):
            found.append("it is no proper address")  # what is wrong with it may be the password
        except (OSError, http.client.HTTPException) as error:
            found.append(str(getattr(error, "reason", error)) or type(error).__name__)

    # A thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found[0] if found else f"no answer within {SECONDS:g} seconds"
