"""Archives that are good, cut off, hostile or too large."""

from __future__ import annotations

import copy
import io
import os
import random
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sightline.data.unpack import Unpacked, names_to_jpg, unpack
from sightline.errors import DataError

NOISE = random.Random(1).randbytes(20_000)


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def taped(path: Path, files: dict[str, bytes], mode: str = "w:gz", extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, mode) as tape:  # type: ignore[call-overload]
        for member in extra:
            tape.addfile(member)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tape.addfile(info, io.BytesIO(content))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = {"images/1.jpg": b"one", "images/2.jpg": b"two"}


@pytest.mark.parametrize("pack", [zipped, taped, lambda path, files: taped(path, files, "w")])
def test_outer_folders_that_all_share_are_left_out(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    archive = pack(tmp_path / "gqa.archive", {f"GQA/{name}": content for name, content in FILES.items()})
    assert unpack(archive, tmp_path / "gqa" / "images") == Unpacked(2, same=0, different=0)
    assert tree(tmp_path / "gqa") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gqa", "gqa.archive"]


def test_folders_that_differ_stay(tmp_path: Path) -> None:
    files = {"00001/a.jpg": b"a", "00002/b.jpg": b"b", "__MACOSX/00001/._a.jpg": b"junk", "00002/.DS_Store": b"junk"}
    unpack(zipped(tmp_path / "a.zip", files), tmp_path / "images")
    assert tree(tmp_path / "images") == {"00001/a.jpg": b"a", "00002/b.jpg": b"b"}


def test_only_the_files_that_are_wanted(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"playground/opensource/x.jsonl": b"x", "y.jsonl": b"y", "other": b"o"})
    (tmp_path / "sft" / "data").mkdir(parents=True)
    unpack(archive, tmp_path / "sft", take=("x.jsonl", "y.jsonl"))
    assert tree(tmp_path / "sft") == {"x.jsonl": b"x", "y.jsonl": b"y"}
    with pytest.raises(DataError, match=r"does not hold z\.jsonl"):
        unpack(archive, tmp_path / "sft", take=("x.jsonl", "z.jsonl"))


def test_what_is_there_stays(tmp_path: Path) -> None:
    place = tmp_path / "images"
    place.mkdir()
    (place / "1.jpg").write_bytes(b"one")
    (place / "2.jpg").write_bytes(b"mended by hand")
    (place / "own.jpg").write_bytes(b"own")
    archive = zipped(tmp_path / "a.zip", FILES | {"images/3.jpg": b"three"})
    assert unpack(archive, place) == Unpacked(1, same=1, different=1)
    expected = {"1.jpg": b"one", "2.jpg": b"mended by hand", "own.jpg": b"own", "3.jpg": b"three"}
    assert tree(place) == expected


def test_a_killed_unpacking_goes_on(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"images/1.jpg": NOISE, "images/2.jpg": NOISE})

    def killed(there: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "images", report=killed)
    assert not (tmp_path / "images").exists()
    done = tmp_path / "images.unpacking" / "files" / "images" / "1.jpg"
    os.utime(done, (1, 1))
    (done.parent / "2.jpg").write_bytes(NOISE[:100])  # the file that was being written
    unpack(archive, tmp_path / "images")
    assert tree(tmp_path / "images") == {"1.jpg": NOISE, "2.jpg": NOISE}
    assert (tmp_path / "images" / "1.jpg").stat().st_mtime == 1  # not written again


HOSTILE = [
    "../evil.jpg",
    "images/../../evil.jpg",
    "/tmp/sightline_evil.jpg",
    "C:\\evil.jpg",
    "..\\evil.jpg",
    "a/\\..\\..\\b",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("pack", [zipped, taped])
def test_no_path_leaves_the_folder(tmp_path: Path, pack, name: str) -> None:  # type: ignore[no-untyped-def]
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = pack(inside / "a.archive", {"good.jpg": b"good", name: b"evil"})
    with pytest.raises(DataError, match="leads out of its folder"):
        unpack(archive, inside / "images")
    assert b"evil" not in tree(tmp_path).values()
    assert not (inside / "images").exists() and not Path("/tmp/sightline_evil.jpg").exists()


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("images", tarfile.SYMTYPE, "../outside"),
        member("images", tarfile.SYMTYPE, "/etc"),
        member("images/1.jpg", tarfile.LNKTYPE, "../../secret"),
        member("images/1.jpg", tarfile.CHRTYPE),
        member("images/1.jpg", tarfile.BLKTYPE),
        member("images/1.jpg", tarfile.FIFOTYPE),
    ],
)
def test_no_link_and_no_device(tmp_path: Path, info: tarfile.TarInfo) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = taped(tmp_path / "a.tar", {"images/1.jpg": b"through the link"}, "w", extra=(info,))
    with pytest.raises(DataError, match=r"which is (a link|no plain file); it was not unpacked"):
        unpack(archive, tmp_path / "data" / "images")
    assert tree(outside) == {} and not (tmp_path / "data" / "images").exists()


def test_no_link_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("images")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(info, "/etc")
        packed.writestr("images/passwd", b"x")
    with pytest.raises(DataError, match="'images', which is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "images")


def test_a_link_of_the_users_own_is_followed_but_not_replaced(tmp_path: Path) -> None:
    elsewhere = tmp_path / "large_disk"
    elsewhere.mkdir()
    (tmp_path / "images").symlink_to(elsewhere)
    growing = []
    report = lambda there, total: growing.append((tmp_path / "large_disk.unpacking").is_dir())  # noqa: E731
    unpack(zipped(tmp_path / "a.zip", FILES), tmp_path / "images", report=report)
    assert tree(elsewhere) == {"1.jpg": b"one", "2.jpg": b"two"} and (tmp_path / "images").is_symlink()
    assert growing == [True, True]  # on the disk where they are to lie


@pytest.mark.parametrize("cut", [0, 10, 300, 512, 1024, 1500, -600])
@pytest.mark.parametrize("mode", ["zip", "w", "w:gz"])
def test_an_archive_that_was_cut_off(tmp_path: Path, mode: str, cut: int) -> None:
    files = {f"{n}.jpg": NOISE[512 * n : 512 * (n + 1)] for n in range(4)}
    archive = tmp_path / "a.archive"
    zipped(archive, files) if mode == "zip" else taped(archive, files, mode)
    content = archive.read_bytes()
    if mode == "w":
        content = content[: 4 * 1024 + 1024]  # without tar's padding to ten kilobytes
    archive.write_bytes(content[:cut])
    with pytest.raises(DataError, match=r"damaged|cut off") as caught:
        unpack(archive, tmp_path / "images")
    assert "delete it and fetch it again" in str(caught.value)
    assert not (tmp_path / "images").exists()


def test_a_damaged_byte(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"1.jpg": NOISE, "2.jpg": NOISE})
    content = bytearray(archive.read_bytes())
    content[5000] ^= 255
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged .*CRC"):
        unpack(archive, tmp_path / "images")
    assert tree(tmp_path) == {"a.zip": bytes(content)}  # so that a good archive does not find the bad file


def test_more_than_fits_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=(64 << 20) + 1_000_000))
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.jpg", bytes(900_000))
        packed.writestr("b.jpg", bytes(900_000))
    assert bomb.stat().st_size < 4000
    with pytest.raises(DataError, match=r"needs 0\.0 GB, 0\.0 GB are free"):
        unpack(bomb, tmp_path / "images")
    assert tree(tmp_path) == {"bomb.zip": bomb.read_bytes()}
    with pytest.raises(DataError, match="are free"):
        unpack(taped(tmp_path / "bomb.tar.gz", {"a.jpg": bytes(1_100_000)}), tmp_path / "images")


def test_a_file_larger_than_declared(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.jpg", bytes(1_000_000))
    content = archive.read_bytes()
    lie = content.replace((1_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lie != content
    archive.write_bytes(lie)
    with pytest.raises(DataError):
        unpack(archive, tmp_path / "images")
    assert sum(len(content) for name, content in tree(tmp_path).items() if name != "a.zip") <= 1000


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    archive = taped(tmp_path / "a.tar", {"images": b"file", "images/1.jpg": b"one"}, "w")
    with pytest.raises(DataError, match="cannot be unpacked into"):
        unpack(archive, tmp_path / "place")


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("<html>Quota exceeded</html>")
    with pytest.raises(DataError, match=r"a\.zip is neither a zip nor a tar archive"):
        unpack(tmp_path / "a.zip", tmp_path / "images")


def test_pictures_become_jpg_by_name_alone(tmp_path: Path) -> None:
    files = {"1.gif": b"GIF", "2.PNG": b"PNG", "3.jpg": b"JPG", "4.jpeg": b"four", "5.gif": b"new", "5.jpg": b"old",
             "dataset.json": b"{}", "sub/6.JPG": b"six"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    inode = (tmp_path / "1.gif").stat().st_ino
    assert names_to_jpg(tmp_path) == (4, 1)
    assert tree(tmp_path) == {"1.jpg": b"GIF", "2.jpg": b"PNG", "3.jpg": b"JPG", "4.jpg": b"four", "5.gif": b"new",
                              "5.jpg": b"old", "dataset.json": b"{}", "sub/6.jpg": b"six"}  # fmt: skip
    assert (tmp_path / "1.jpg").stat().st_ino == inode  # not a copy
    assert names_to_jpg(tmp_path) == (0, 1)


def test_a_zip_at_the_end_of_a_tar_is_one_of_its_files(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"b.jpg": b"two"}).read_bytes()
    files = {"a.jpg": b"one", "inner.zip": inner}
    unpack(taped(tmp_path / "a.tar", files, "w"), tmp_path / "images")
    assert tree(tmp_path / "images") == files


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """Ten kilobytes that would become six gigabytes, as GNU tar writes them (type S: pieces, and the whole size)."""
    header = bytearray(tarfile.TarInfo("images/1.jpg").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % 512
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 6_000_000_000
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:512]))
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(512) + bytes(1024))
    with tarfile.open(tmp_path / "a.tar") as tape:
        assert [(member.size, member.issparse()) for member in tape] == [(6_000_000_000, True)]
    with pytest.raises(DataError, match="which is a sparse file") as error:
        unpack(tmp_path / "a.tar", tmp_path / "images")
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_files_that_lie_one_in_another(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"1.jpg": NOISE})
    with zipfile.ZipFile(archive, "a") as packed:
        (first,) = packed.infolist()
        for number in range(50):
            again = copy.copy(first)
            again.filename = f"again{number}.jpg"
            packed.filelist.append(again)
        packed._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="its files lie one in another"):
        unpack(archive, tmp_path / "images")


def test_a_file_without_a_name(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"x": b"one"})
    archive.write_bytes(archive.read_bytes().replace(b"x", b"\0"))
    with pytest.raises(DataError, match="holds a file without a name"):
        unpack(archive, tmp_path / "images")


def test_what_stands_in_the_place_of_a_name_is_not_quoted_whole(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("set/a.jpg", b"x" * 60_000)
    content = bytearray(archive.read_bytes())
    content[26:28] = (50_000).to_bytes(2, "little")  # the length of the name, in the header of the file
    archive.write_bytes(content)
    with pytest.raises(DataError, match="is damaged") as error:
        unpack(archive, tmp_path / "place")
    assert len(str(error.value)) < 500 + len(str(archive))
