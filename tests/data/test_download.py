"""Images that rows name by URL are fetched once, whatever the server does, and their rows name files after that."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from picture_files import noise, saved, scene

from sightline.cli import main
from sightline.data.convert import convert
from sightline.data.image_files import ImageFiles, _name_of_url
from sightline.errors import DataError, UserError
from sightline.limits import Limits, use

JPEG, PNG = saved(scene(), "JPEG"), saved(noise(40, 30), "PNG")
MPO = saved(scene(), "MPO", save_all=True, append_images=[scene()])
"""What many phones write: a JPEG with a second picture behind."""


class Shop(BaseHTTPRequestHandler):
    """A server whose shelves are the names of its paths."""

    asked: Counter[str]

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].removesuffix("?token=hush")
        self.asked[name] += 1
        times = self.asked[name]
        if name.startswith("busy") and times < 3:
            self.answer(503, b"later", {"Retry-After": "7"})
        elif name.startswith("patience") and times < 2:
            self.answer(429, b"later", {"Retry-After": "3600"})
        elif name.startswith("broken") or (name.startswith("cut") and times < 2):
            self.answer(200, PNG, cut=100)
        elif name.startswith("gone"):
            self.answer(404, b"no")
        elif name.startswith("page"):
            self.answer(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        elif name.startswith("phone"):
            self.answer(200, MPO)
        elif name.startswith("lie"):
            self.answer(200, b"these are no pixels at all")
        else:
            self.answer(200, PNG if "png" in name or "." not in name or name.startswith("cut") else JPEG)

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        self.send_response(code)
        for key, value in {"Content-Type": "image/x", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - cut])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def shop() -> Iterator[tuple[str, Counter[str]]]:
    asked: Counter[str] = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Open", (Shop,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/images/I", asked
    server.shutdown()
    server.server_close()


def fetching(folder: Path, pauses: list[float] | None = None) -> ImageFiles:
    return ImageFiles(folder, None, fetches=True, private=True, pause=(pauses if pauses is not None else []).append)


def rows(tmp_path: Path, *urls: str) -> Path:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"image": url, "conversations": [["<image>\nQ", "A"]]} for url in urls]))
    return path


def test_rows_as_paddlemix_shows_them(tmp_path: Path, shop: tuple[str, Counter[str]]) -> None:
    # Its README has URLs like http://.../images/I/517lfifp%2BqL.jpg
    host, asked = shop
    urls = [f"{host}/51ntbts0gmL.jpg", f"{host}/517lfifp%2BqL.jpg", f"{host}/51ntbts0gmL.jpg", f"{host}/plain?size=3"]
    source, folder = rows(tmp_path, *urls), tmp_path / "pictures"
    done = convert(source, tmp_path / "out.json", "paddlemix", files=fetching(folder))
    assert done.rows == 4
    names = [row["image"] for row in json.loads((tmp_path / "out.json").read_text())]
    assert names[0] == names[2] and len(set(names)) == 3 == len(list(folder.iterdir()))
    assert names[0].startswith("51ntbts0gmL-") and names[0].endswith(".jpg")
    assert names[3].startswith("plain-") and names[3].endswith(".png")
    assert (folder / names[0]).read_bytes() == JPEG and (folder / names[3]).read_bytes() == PNG
    assert set(asked.values()) == {1}
    # A second start finds them all and asks for nothing.
    convert(source, tmp_path / "again.json", "llava", files=fetching(folder))
    assert [row["image"] for row in json.loads((tmp_path / "again.json").read_text())] == names
    assert set(asked.values()) == {1}


def test_faults_that_pass(tmp_path: Path, shop: tuple[str, Counter[str]]) -> None:
    host, asked = shop
    pauses: list[float] = []
    source = rows(tmp_path, f"{host}/busy.jpg", f"{host}/cut.png")
    convert(source, tmp_path / "out.json", "llava", files=fetching(tmp_path / "pictures", pauses))
    assert asked == {"busy.jpg": 3, "cut.png": 2} and pauses.count(7.0) == 2
    (cut,) = (tmp_path / "pictures").glob("cut*")
    assert cut.read_bytes() == PNG


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.jpg", "404"),
        ("page.jpg", "web page"),
        ("lie.jpg", "cannot be used: image"),
        ("lie", "cannot be used: image"),
    ],
)
def test_faults_that_stay_are_told_with_their_row(
    tmp_path: Path, shop: tuple[str, Counter[str]], name: str, reason: str
) -> None:
    host, _ = shop
    source, folder = rows(tmp_path, f"{host}/fine.jpg", f"{host}/{name}"), tmp_path / "pictures"
    with pytest.raises(DataError) as error:
        convert(source, tmp_path / "out.json", "llava", files=fetching(folder))
    said = str(error.value)
    assert said.startswith(f"{source}: row 2: ") and f"{host}/{name}" in said and reason in said and "\n" not in said
    assert not (tmp_path / "out.json").exists()
    done = convert(source, tmp_path / "out.json", "llava", files=fetching(folder), skip=True)
    assert (done.rows, done.left_out) == (1, 1)
    assert [path.name.partition("-")[0] for path in folder.iterdir()] == ["fine"]


def test_a_file_of_the_users_is_not_removed(tmp_path: Path, shop: tuple[str, Counter[str]]) -> None:
    host, asked = shop
    stem, suffix = _name_of_url(f"{host}/fine.jpg")
    mine = tmp_path / "pictures" / f"{stem}{suffix}"
    mine.parent.mkdir()
    mine.write_text("no picture, but mine")
    with pytest.raises(DataError, match="cannot be used: image"):
        convert(rows(tmp_path, f"{host}/fine.jpg"), tmp_path / "out.json", "llava", files=fetching(mine.parent))
    assert mine.read_text() == "no picture, but mine" and not asked


def test_pictures_of_phones_are_not_fetched_again(tmp_path: Path, shop: tuple[str, Counter[str]]) -> None:
    host, asked = shop
    for start in ("first", "second"):
        convert(rows(tmp_path, f"{host}/phone"), tmp_path / f"{start}.json", "llava", files=fetching(tmp_path / "out"))
    assert asked["phone"] == 1
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".jpg"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError) as error:
        convert(
            rows(tmp_path, "http://127.0.0.1:9/a.jpg"), tmp_path / "x.json", "llava", files=fetching(tmp_path / "out")
        )
    assert str(tmp_path / "out") in str(error.value)


def test_urls_stay_urls_where_nothing_is_gathered(tmp_path: Path) -> None:
    source = rows(tmp_path, "https://example.org/a.jpg")
    convert(source, tmp_path / "out.json", "llava")
    assert json.loads((tmp_path / "out.json").read_text())[0]["image"] == "https://example.org/a.jpg"


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def usual_limits() -> Iterator[None]:
    yield
    use(Limits())


def reasons(tmp_path: Path, files: ImageFiles, *urls: str) -> list[str]:
    """Why rows with these URLs are left out; one that is none is added."""
    source = rows(tmp_path, *urls)
    source.write_text(json.dumps([*json.loads(source.read_text()), {"conversations": [["Q", "A"]]}]))
    convert(source, tmp_path / "out.json", "llava", files=files, skip=True)
    return [json.loads(line)["reason"] for line in (tmp_path / "out.json.bad.jsonl").read_text().splitlines()]


def test_the_own_network_is_asked_only_where_it_is_wanted(
    tmp_path: Path, shop: tuple[str, Counter[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    host, asked = shop
    command = ["data", "convert", str(rows(tmp_path, f"{host}/a.jpg")), str(tmp_path / "out.json"), "--to", "llava"]
    command += ["--download", str(tmp_path / "pictures")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "row 1: image http://127.0.0.1:" in said and "--private-network allows it" in said
    assert said.count("\n") == 1 and not asked
    assert main([*command, "--private-network"]) == 0 and asked == {"a.jpg": 1}


def test_what_is_too_large_is_a_bad_row_and_leaves_nothing(
    tmp_path: Path, shop: tuple[str, Counter[str]], usual_limits: None
) -> None:
    use(Limits(image_megabytes=1e-4))
    host, _ = shop
    (said,) = reasons(tmp_path, fetching(tmp_path / "pictures"), f"{host}/large.png")
    assert "is larger than 0.0001 MB" in said and "--raise-limit image_megabytes=" in said
    assert [path for path in (tmp_path / "pictures").iterdir() if "json" not in path.name] == []


def test_urls_that_can_never_work_are_not_tried(tmp_path: Path) -> None:
    pauses: list[float] = []
    urls = ["http://127.0.0.1:9/a b.jpg", "http://127.0.0.1:9/\0", "http://127.0.0.1:9/a\r\nb", "http://me:pw@x/a.jpg"]
    found = reasons(tmp_path, fetching(tmp_path / "pictures", pauses), *urls)
    assert len(found) == 4 and pauses == []
    assert not any("pw" in each for each in found)


def test_secrets_of_urls_are_nowhere(tmp_path: Path, shop: tuple[str, Counter[str]]) -> None:
    host, _ = shop
    urls = [f"{host}/{name}?token=hush" for name in ("gone.jpg", "page.jpg", "lie.jpg", "broken.jpg")]
    found = reasons(tmp_path, fetching(tmp_path / "pictures"), *urls)
    assert len(found) == 4 and not any("hush" in each for each in found)
    notes = list((tmp_path / "pictures").glob("*.part.json"))
    assert notes and not any("hush" in note.read_text() for note in notes)
    assert "hush" not in (tmp_path / "out.json.bad.jsonl").read_text()
    with pytest.raises(DataError) as error:
        convert(rows(tmp_path, urls[0]), tmp_path / "x.json", "llava", files=ImageFiles(tmp_path, None, fetches=False))
    assert "hush" not in str(error.value)


def test_one_server_that_asks_for_patience_holds_up_no_other(tmp_path: Path, shop: tuple[str, Counter[str]]) -> None:
    host, asked = shop
    fine = [f"{host}/fine{number}.jpg" for number in range(30)]
    waited: list[tuple[float, bool]] = []

    def pause(seconds: float) -> None:
        deadline = time.monotonic() + 30
        while sum(name.startswith("fine") for name in asked) < len(fine) and time.monotonic() < deadline:
            time.sleep(0.01)
        waited.append((seconds, time.monotonic() < deadline))

    files = ImageFiles(tmp_path / "pictures", None, fetches=True, private=True, pause=pause)
    source = rows(tmp_path, *(f"{host}/patience{number}.jpg" for number in range(12)), *fine)
    assert convert(source, tmp_path / "out.json", "llava", files=files).rows == 42
    assert waited == [(30.0, True)] * 12, "an hour was asked for, half a minute is waited"


def test_when_it_is_over_nothing_is_waited_for(tmp_path: Path, shop: tuple[str, Counter[str]]) -> None:
    """The first row ends the work while the server of the second one asks for half a minute."""
    host, _ = shop
    source = rows(tmp_path, "http://127.0.0.1:9/a b", f"{host}/patience.jpg")
    files = ImageFiles(tmp_path / "pictures", None, fetches=True, private=True)
    start = time.monotonic()
    with pytest.raises(DataError, match="row 1: "):
        convert(source, tmp_path / "out.json", "llava", files=files)
    assert time.monotonic() - start < 20
