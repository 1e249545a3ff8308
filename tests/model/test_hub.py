"""Names on the hub that cannot be had: one line with what to do, soon, and the cache where it has them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from sightline import cli
from sightline.errors import ModelError
from sightline.model import hub
from sightline.model.hub import check_at_hand


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache with one model, and a hub at an address where nobody answers."""
    (tmp_path / "models--some--model" / "snapshots" / "0123").mkdir(parents=True)
    (tmp_path / "models--some--model" / "snapshots" / "0123" / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    forget = hub._unreachable.cache_clear
    forget()
    yield tmp_path
    forget()


def test_a_hub_that_cannot_be_reached_is_one_line(
    online: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "_unreachable", lambda address: asked.append(address) or "no route")
    words = ["assemble", "--llm", "a/llm", "--vision-tower", "a/tower", "--out", str(online / "out")]
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "cannot be reached (no route)" in lines[0]
    for remedy in ("local folder", "HF_ENDPOINT", "HF_HUB_OFFLINE=1"):
        assert remedy in lines[0]


def test_nobody_answers(online: Path) -> None:
    with pytest.raises(ModelError, match=r"no folder other/model here, and the hub .* cannot be reached"):
        check_at_hand("other/model")


@pytest.mark.parametrize("place", ["127.0.0.1:9", "127.0.0.1", "127.0.0.1:x"])
def test_a_password_in_the_address_is_not_shown(online: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:geheim@{place}")
    with pytest.raises(ModelError, match=f"the hub http://{place} cannot be reached") as error:
        check_at_hand("other/model")
    assert "geheim" not in str(error.value)


def test_what_answers_but_speaks_no_http(
    online: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0\r\n\r\n"), daemon=True).start()
        with pytest.raises(ModelError, match="SSH"):
            check_at_hand("other/model")
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_in_the_cache_is_taken_from_there(online: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_at_hand("some/model")
    assert huggingface_hub.constants.HF_HUB_OFFLINE, "it is not asked for again, file by file"
    assert "some/model is taken from its cache" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModelError, match="the hub's cache does not hold it"):
        check_at_hand("other/model")


def test_a_mirror_that_answers_is_asked_no_more(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_unreachable", lambda address: None)
    check_at_hand("other/model")
