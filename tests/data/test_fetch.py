"""Fetching from servers that break off, lie, change and refuse."""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from file_server import Served, Server, file_server

from sightline.data.fetch import fetch, remote_size
from sightline.errors import DataError
from sightline.limits import Limits, use
from sightline.network import DOWNLOAD

CONTENT = random.Random(1).randbytes(50_000)
OTHER = random.Random(2).randbytes(50_000)


@pytest.fixture
def server() -> Iterator[Server]:
    with file_server() as running:
        yield running


class Pauses(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def get(server: Server, target: Path, **options: str) -> Pauses:
    pauses = Pauses()
    fetch(f"{server.url}/file", target, pause=pauses, **options)  # type: ignore[arg-type]
    return pauses


def test_a_whole_file_in_one_request(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT)
    seen: list[tuple[int, int | None]] = []
    fetch(f"{server.url}/file", tmp_path / "new" / "f", report=lambda there, total: seen.append((there, total)))
    assert (tmp_path / "new" / "f").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["f"]
    assert seen[0] == (0, 50_000) and seen[-1] == (50_000, 50_000)


def test_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, breaks=[10_000, 7_000])
    assert get(server, tmp_path / "f") == [1.0, 1.0]  # each try gained something
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.gets("/file") == [None, "bytes=10000-", "bytes=17000-"]


def test_a_later_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, breaks=[20_000])

    def killed(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/file", tmp_path / "f", pause=killed)
    assert not (tmp_path / "f").exists() and (tmp_path / "f.part").stat().st_size == 20_000
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.gets("/file")[-1] == "bytes=20000-"


def test_complete_but_not_renamed_yet_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, breaks=[20_000])
    with pytest.raises(ZeroDivisionError):
        fetch(f"{server.url}/file", tmp_path / "f", pause=lambda seconds: 1 / 0)  # type: ignore[arg-type, return-value]
    (tmp_path / "f.part").write_bytes(CONTENT)
    get(server, tmp_path / "f")
    assert len(server.asked) == 1 and (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_between_tries_is_never_mixed(server: Server, tmp_path: Path, if_range: bool) -> None:
    server.files["/file"] = Served(CONTENT, breaks=[30_000], if_range=if_range, changes=[(OTHER, '"two"')])
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == OTHER


def test_a_change_is_seen_by_the_date_where_the_etag_is_weak(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, etag='W/"one"', modified="Mon, 01 Jan 2024 00:00:00 GMT", breaks=[30_000])

    def change(seconds: float) -> None:
        server.files["/file"] = Served(OTHER, etag='W/"one"', modified="Tue, 02 Jan 2024 00:00:00 GMT")

    fetch(f"{server.url}/file", tmp_path / "f", pause=change)
    assert (tmp_path / "f").read_bytes() == OTHER


def test_a_change_is_seen_by_the_size_alone(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, etag=None, breaks=[30_000], changes=[(OTHER[:-1], "")])
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == OTHER[:-1]


def test_a_part_of_another_url_is_not_used(server: Server, tmp_path: Path) -> None:
    server.files |= {"/old": Served(OTHER, breaks=[20_000]), "/file": Served(CONTENT)}
    with pytest.raises(ZeroDivisionError):
        fetch(f"{server.url}/old", tmp_path / "f", pause=lambda seconds: 1 / 0)  # type: ignore[arg-type, return-value]
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_part_of_unknown_origin_is_not_used(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT)
    (tmp_path / "f.part").write_bytes(OTHER[:1000])
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_ignores_range_sends_it_anew(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, ranges=False, breaks=[30_000])
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_says_no_length(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, length=False)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_file_shorter_than_announced_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, announced=60_000)
    with pytest.raises(DataError, match=r"50,000 bytes came of 60,000 .*6 times in a row"):
        get(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    assert len(server.asked) == DOWNLOAD.tries + 1  # the first one gained something


def test_a_server_that_always_breaks_off_at_the_same_byte_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, ranges=False, breaks=[30_000] * 50)
    with pytest.raises(DataError, match="times in a row"):
        get(server, tmp_path / "f")
    assert len(server.asked) == DOWNLOAD.tries + 1


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_a_refusal_is_final(server: Server, tmp_path: Path, status: int) -> None:
    server.files["/file"] = Served(CONTENT, refusals=[(status, {})])
    with pytest.raises(DataError, match=rf"/file: the server answers {status}"):
        get(server, tmp_path / "f")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again_later_and_later(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, refusals=[(500, {}), (503, {}), (502, {})])
    assert get(server, tmp_path / "f") == [2.0, 4.0, 8.0]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_waits_as_long_as_the_server_asks(server: Server, tmp_path: Path) -> None:
    refusals = [(429, {"Retry-After": "17"}), (429, {"Retry-After": "99999"}), (429, {"Retry-After": "soon"})]
    server.files["/file"] = Served(CONTENT, refusals=refusals)
    assert get(server, tmp_path / "f") == [17.0, DOWNLOAD.longest_pause, 8.0]


def test_a_busy_server_is_given_up_at_last(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, refusals=[(500, {})] * 50)
    with pytest.raises(DataError, match=r"answers 500 .*6 times in a row; try again later"):
        get(server, tmp_path / "f")
    assert len(server.asked) == DOWNLOAD.tries


def test_no_server_at_all(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
    pauses = Pauses()
    with pytest.raises(DataError, match=r"cannot be reached .*refused.*3 times in a row"):
        fetch(url, tmp_path / "f", pause=pauses)
    assert pauses == [2.0, 4.0]  # most likely there is no network: no minute of waiting for each part
    assert remote_size(url) is None


def test_a_web_page_is_not_taken_for_the_file(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(b"<html>Sign in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(DataError, match="gives a web page, not the file"):
        get(server, tmp_path / "f.zip")
    assert list(tmp_path.iterdir()) == []


def test_checksums(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT)
    get(server, tmp_path / "f", checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    with pytest.raises(DataError, match=r"its md5 is \w+, not 123"):
        get(server, tmp_path / "g", checksum="md5:123")
    assert not (tmp_path / "g").exists()
    assert (tmp_path / "g.unexpected").read_bytes() == CONTENT  # nothing is lost


def test_only_http(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    with pytest.raises(DataError, match="no http"):
        fetch(secret.as_uri(), tmp_path / "f")


def test_size_ahead(server: Server) -> None:
    server.files["/file"] = Served(CONTENT)
    assert remote_size(f"{server.url}/file") == 50_000
    assert remote_size(f"{server.url}/none") is None


def test_an_answer_without_sense_is_told_in_one_line(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, refusals=[(302, {"Location": "http://[x"})])
    with pytest.raises(DataError, match=r"/file: the answer makes no sense \(Invalid IPv6 URL\)"):
        get(server, tmp_path / "f")


def test_a_length_that_no_disk_could_hold_counts_as_none(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT, announced=10**400, breaks=[100])
    assert remote_size(f"{server.url}/file") is None


def test_a_part_of_a_set_has_bounds_too(server: Server, tmp_path: Path) -> None:
    try:
        use(Limits(download_megabytes=0.04))
        for file in (Served(CONTENT), Served(CONTENT, length=False)):
            server.files["/file"] = file
            with pytest.raises(DataError, match=r"is larger than 0\.04 MB; .*--raise-limit download_megabytes="):
                get(server, tmp_path / "f")
            assert not (tmp_path / "f").exists() and not (tmp_path / "f.part").exists()
    finally:
        use(Limits())


def test_all_tries_together_have_a_time(server: Server, tmp_path: Path) -> None:
    try:
        use(Limits(download_seconds=5))
        server.files["/file"] = Served(CONTENT, refusals=[(503, {"Retry-After": "9"})])
        with pytest.raises(DataError, match=r"takes longer than 5 s; .*the last try: the server answers 503"):
            get(server, tmp_path / "f")
    finally:
        use(Limits())


@pytest.mark.parametrize("name", ["f.part", "f.part.json"])
def test_a_link_in_the_place_of_a_part_is_not_followed(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / name).symlink_to("theirs")
    server.files["/file"] = Served(CONTENT)
    with suppress(DataError):
        get(server, tmp_path / "f")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


HOLDS = "import sys, pathlib; from sightline.files import hold\n" + (
    "it = hold(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_processes_do_not_fetch_one_file_at_once(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = Served(CONTENT)
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "f.part")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match=r"another process is fetching it to .*/f; wait for that one"):
            get(server, tmp_path / "f")
        assert server.gets("/file") == [] and (tmp_path / "f.part").exists()
        other.kill()
        other.wait()
    get(server, tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
