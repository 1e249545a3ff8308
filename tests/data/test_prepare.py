"""`sightline data prepare` and `data verify`, through the command line, against a server on this machine."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_server import Served, Server, file_server

from sightline.cli import main
from sightline.data import fetch, layouts
from sightline.data.layouts import KnownSet, find_set

ROWS = [
    {"image": "coco/train2017/1.jpg"},
    {"image": "gqa/images/2.jpg"},
    {"image": "ocr_vqa/images/3.jpg"},
    {"image": "textvqa/train_images/4.jpg"},
    {"image": ["vg/VG_100K/5.jpg", "vg/VG_100K_2/6.jpg"]},
    {"conversations": []},
]

Use = Callable[[str], KnownSet]


def archive(files: Mapping[str, bytes], kind: str = ".zip") -> bytes:
    buffer = io.BytesIO()
    if kind == ".zip":
        with zipfile.ZipFile(buffer, "w") as packed:
            for name, content in files.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tape:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tape.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[Server]:
    with file_server() as running:
        yield running


@pytest.fixture
def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Make a known set small: its URLs lead to the server, its folders hold one picture each."""
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)

    def shrink(name: str) -> KnownSet:
        known = find_set(name)
        parts = []
        for part in known.parts:
            url = f"{server.url}/{part.name}{part.ending}" if part.url else None
            pictures = 1 if part.pictures else None
            parts.append(replace(part, url=url, pictures=pictures, size=None, checksum=None))
        rows = tuple(replace(file, rows=len(ROWS) if file.rows else None) for file in known.files)
        small = replace(known, parts=tuple(parts), files=rows)
        monkeypatch.setattr(layouts, "known_sets", lambda: {small.name: small})
        return small

    return shrink


@pytest.fixture
def mix(server: Server, use: Use, tmp_path: Path) -> Path:
    """A small llava_v15_mix665k on the server; returns the root."""
    use("llava_v15_mix665k")
    server.files |= {
        "/llava_mix665k_json": Served(json.dumps(ROWS).encode()),
        "/coco.zip": Served(archive({"train2017/1.jpg": b"1"})),
        "/gqa.zip": Served(archive({"images/2.jpg": b"2"})),
        "/textvqa.zip": Served(archive({"train_images/4.jpg": b"4"})),
        "/vg.zip": Served(archive({"VG_100K/5.jpg": b"5"})),
        "/vg_2.zip": Served(archive({"VG_100K_2/6.jpg": b"6"})),
    }
    return tmp_path / "data"


def run(command: str, name: str, root: Path, *more: str) -> int:
    return main(["data", command, name, "--root", str(root), *more])


def test_dry_run_fetches_nothing(mix: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "llava_v15_mix665k", mix, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert not mix.exists() and {method for method, _, _ in server.asked} == {"HEAD"}
    lines = {line.split()[-1]: line.split()[:2] for line in printed.splitlines()[1:8]}
    assert lines["llava_data/llava_images/ocr_vqa/images"] == ["by", "hand"]
    assert lines["llava_data/llava_images/coco/train2017"] == ["fetch", str(len(server.files["/coco.zip"].content))]
    assert "licence of vg, vg_2: see" in printed and "By hand: ocr_vqa" in printed


def test_the_way_of_a_set(mix: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    images = mix / "llava_data" / "llava_images"
    server.files["/coco.zip"].breaks = [20]
    assert run("prepare", "llava_v15_mix665k", mix) == 0
    assert (images / "coco" / "train2017" / "1.jpg").read_bytes() == b"1"
    assert (images / "vg" / "VG_100K_2" / "6.jpg").read_bytes() == b"6"
    assert (mix / "downloads" / "coco.zip").exists()  # kept

    assert run("verify", "llava_v15_mix665k", mix) == 2
    printed = capsys.readouterr()
    assert "llava_v1_5_mix665k.json: 6 rows name 6 pictures, 1 of them not there" in printed.out
    assert "1 in llava_data/llava_images/ocr_vqa/images, such as ocr_vqa/images/3.jpg" in printed.out
    assert "not complete: ocr_vqa; 1 picture of llava_v1_5_mix665k.json missing" in printed.err
    assert f"prepare llava_v15_mix665k --root {mix} --only ocr_vqa`" in printed.err

    # A person puts the archive there, with a picture that is called otherwise than the rows say.
    content = archive({"ocr_vqa/images/3.gif": b"GIF89a", "ocr_vqa/images/9.jpg": b"9"}, ".tar.gz")
    (mix / "downloads" / "ocr_vqa.tar.gz").write_bytes(content)
    server.asked.clear()
    assert run("prepare", "llava_v15_mix665k", mix) == 0
    assert server.asked == []  # what is there is not fetched again
    assert (images / "ocr_vqa" / "images" / "3.jpg").read_bytes() == b"GIF89a"
    capsys.readouterr()
    assert run("verify", "llava_v15_mix665k", mix) == 0
    assert "All of it is there." in capsys.readouterr().out


def test_a_folder_of_unknown_size_is_filled_up_when_asked(mix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = mix / "llava_data/llava_images/ocr_vqa/images"
    place.mkdir(parents=True)
    (place / "9.jpg").write_bytes(b"9")
    assert run("prepare", "llava_v15_mix665k", mix) == 0  # it may be complete, as far as anyone knows
    assert "By hand: ocr_vqa" not in capsys.readouterr().out
    assert run("prepare", "llava_v15_mix665k", mix, "--only", "ocr_vqa") == 0
    assert "By hand: ocr_vqa" in capsys.readouterr().out
    (mix / "downloads" / "ocr_vqa.zip").write_bytes(archive({"3.jpg": b"3", "9.jpg": b"another"}))
    assert run("prepare", "llava_v15_mix665k", mix, "--only", "ocr_vqa") == 0
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"3.jpg": b"3", "9.jpg": b"9"}


def test_one_dead_link_does_not_hold_up_the_rest(mix: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    del server.files["/gqa.zip"]
    server.files["/vg.zip"].content = b"<html>no archive</html>"
    assert run("prepare", "llava_v15_mix665k", mix) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "gqa" in errors[0] and "answers 404" in errors[0]
    assert "vg.zip is neither a zip nor a tar archive" in errors[1]
    assert (mix / "llava_data/llava_images/vg/VG_100K_2/6.jpg").exists()
    assert not (mix / "llava_data/llava_images/vg/VG_100K").exists()


def test_a_hostile_archive_changes_nothing_outside(mix: Path, server: Server, tmp_path: Path) -> None:
    server.files["/coco.zip"].content = archive({"train2017/1.jpg": b"1", "../../../../../evil.jpg": b"evil"})
    assert run("prepare", "llava_v15_mix665k", mix, "--only", "coco") == 2
    assert not list(tmp_path.rglob("evil.jpg")) and not list(tmp_path.rglob("1.jpg"))


def test_only_some_parts(mix: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "llava_v15_mix665k", mix, "--only", "gqa", "vg") == 0
    assert server.gets("/coco.zip") == [] and len(server.gets("/gqa.zip")) == 1
    assert run("prepare", "llava_v15_mix665k", mix, "--only", "gpa") == 2
    assert "has no part gpa; its parts: llava_mix665k_json, coco" in capsys.readouterr().err


def test_archives_can_go(mix: Path) -> None:
    assert run("prepare", "llava_v15_mix665k", mix, "--only", "gqa", "--remove-archives") == 0
    assert not list((mix / "downloads").glob("*.zip"))


def test_an_incomplete_folder_is_filled_up(mix: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (known,) = layouts.known_sets().values()
    parts = tuple(replace(part, pictures=3) if part.name == "gqa" else part for part in known.parts)
    monkeypatch.setattr(layouts, "known_sets", lambda: {known.name: replace(known, parts=parts)})
    server.files["/gqa.zip"].content = archive({"images/2.jpg": b"2", "images/7.jpg": b"7", "images/8.jpg": b"8"})
    place = mix / "llava_data/llava_images/gqa/images"
    place.mkdir(parents=True)
    (place / "2.jpg").write_bytes(b"2")
    assert run("prepare", "llava_v15_mix665k", mix, "--only", "gqa") == 0
    assert sorted(path.name for path in place.iterdir()) == ["2.jpg", "7.jpg", "8.jpg"]


def test_a_full_disk_is_told_before(
    mix: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert run("prepare", "llava_v15_mix665k", mix) == 2
    assert "are to be fetched, 100 B are free" in capsys.readouterr().err
    assert {method for method, _, _ in server.asked} == {"HEAD"}


def test_what_has_come_needs_no_room_again(
    mix: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = len(server.files["/coco.zip"].content)
    (mix / "downloads").mkdir(parents=True)
    (mix / "downloads" / "coco.zip.part").write_bytes(bytes(size - 9))
    assert run("prepare", "llava_v15_mix665k", mix, "--only", "coco", "--dry-run") == 0
    assert "To fetch: 9 B." in capsys.readouterr().out


def test_a_root_that_is_a_file(mix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix.write_text("a file")
    assert run("prepare", "llava_v15_mix665k", mix) == 2
    assert "cannot be made a folder: File exists" in capsys.readouterr().err


def test_two_at_once_do_not_write_one_file(mix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fcntl = pytest.importorskip("fcntl")
    (mix / "downloads").mkdir(parents=True)
    with (mix / "downloads" / ".gqa.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run("prepare", "llava_v15_mix665k", mix, "--only", "gqa") == 2
    assert "another run is fetching it" in capsys.readouterr().err


def test_links_and_parts_by_hand(server: Server, use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use("sharegpt4v_cap100k")
    rows = [{"image": "coco/train2017/1.jpg"}, {"image": "llava/llava_pretrain/images/00/2.jpg"},
            {"image": "wikiart/images/3.jpg"}]  # fmt: skip
    server.files |= {
        "/sharegpt4v_cap100k_json": Served(json.dumps(rows).encode()),
        "/coco.zip": Served(archive({"train2017/1.jpg": b"1"})),
        "/llava_pretrain_images.zip": Served(archive({"00/2.jpg": b"2", "01/x.jpg": b"x"})),
    }
    root = tmp_path / "data"
    assert run("prepare", "sharegpt4v_cap100k", root) == 0
    printed = capsys.readouterr().out
    for name in ("sam", "share_textvqa", "web-celebrity", "web-landmark", "wikiart"):
        assert f"By hand: {name} (" in printed
    assert f"Save an archive as {root}/downloads/wikiart.zip" in printed and "for academic use only" in printed
    link = root / "sharegpt4v" / "data" / "llava" / "llava_pretrain" / "images"
    assert str(link.readlink()) == "../../../../llava_data/LLaVA-Pretrain/images"
    root.rename(tmp_path / "moved")  # links are relative, so the tree may move
    assert (tmp_path / "moved" / "sharegpt4v/data/llava/llava_pretrain/images/00/2.jpg").read_bytes() == b"2"
    assert run("verify", "sharegpt4v_cap100k", tmp_path / "moved") == 2
    printed = capsys.readouterr().out
    assert "3 rows name 3 pictures, 1 of them not there" in printed
    assert "such as wikiart/images/3.jpg" in printed
    (tmp_path / "moved" / "llava_data/llava_images/coco/train2017/1.jpg").unlink()
    (tmp_path / "moved" / "llava_data/llava_images/coco/train2017/x.jpg").touch()
    assert run("verify", "sharegpt4v_cap100k", tmp_path / "moved") == 2
    assert "wikiart coco`" in capsys.readouterr().err  # the part behind the link


def test_a_link_that_leads_nowhere_is_not_overwritten(
    tmp_path: Path, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    use("sharegpt4v_cap100k")
    link = tmp_path / "sharegpt4v" / "data" / "coco"
    link.parent.mkdir(parents=True)
    link.symlink_to("/nowhere")
    assert run("prepare", "sharegpt4v_cap100k", tmp_path, "--only", "sharegpt4v_link_coco") == 2
    assert "cannot be made a link" in capsys.readouterr().err and str(link.readlink()) == "/nowhere"


def test_verify_without_anything(use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use("llava_pretrain_558k")
    assert run("verify", "llava_pretrain_558k", tmp_path / "none") == 2
    printed = capsys.readouterr()
    assert printed.out.count("  missing  ") == 3 and not (tmp_path / "none").exists()
    assert "sightline data prepare llava_pretrain_558k --root" in printed.err


def test_verify_names_broken_rows(mix: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/llava_mix665k_json"].content = b'[{"image": "a.jpg"}, {"ima'
    run("prepare", "llava_v15_mix665k", mix)
    assert run("verify", "llava_v15_mix665k", mix) == 2
    assert "row 2" in capsys.readouterr().out


def test_verify_counts_the_rows(mix: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/llava_mix665k_json"].content = json.dumps(ROWS[:2]).encode()
    run("prepare", "llava_v15_mix665k", mix)
    assert run("verify", "llava_v15_mix665k", mix) == 2
    assert "llava_v1_5_mix665k.json has 2 rows, not 6" in capsys.readouterr().err


def test_verify_checks_small_files_by_their_checksum(
    server: Server, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = use("ccbench")
    md5 = "md5:9a0364b9e99bb480dd25e1f0284c8555"  # of "content"
    known = replace(small, parts=(replace(small.parts[0], checksum=md5),))
    monkeypatch.setattr(layouts, "known_sets", lambda: {"ccbench": known})
    server.files["/ccbench"] = Served(b"content")
    assert run("prepare", "ccbench", tmp_path) == 0
    assert run("verify", "ccbench", tmp_path) == 0
    (tmp_path / "mmbench" / "CCBench.tsv").write_bytes(b"changed")
    assert run("verify", "ccbench", tmp_path) == 2
    assert "but its md5 is not 9a0364b9e99bb480dd25e1f0284c8555" in capsys.readouterr().out


def test_a_mirror_of_the_hub(monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    path = "/datasets/liuhaotian/LLaVA-Pretrain/resolve/main/blip_laion_cc_sbu_558k_meta.json"
    server.files[path] = Served(b"[]")
    assert run("prepare", "llava_pretrain_558k", tmp_path, "--only", "llava_pretrain_meta") == 0
    assert (tmp_path / "llava_data/LLaVA-Pretrain/blip_laion_cc_sbu_558k_meta.json").read_bytes() == b"[]"


def test_what_is_to_be_made_is_said(use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use("refcoco")
    assert run("prepare", "refcoco", tmp_path, "--dry-run") == 0
    assert f"sightline preprocess refcoco --ann-path {tmp_path}/refcoco_annotations" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["prepare", "verify"])
def test_without_a_name_the_sets_are_listed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", command]) == 0
    assert "llava_v15_mix665k" in capsys.readouterr().out


def test_an_unknown_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", "llava_665k"]) == 2
    assert "no known set of data is called 'llava_665k'; did you mean" in capsys.readouterr().err
