"""The command line: what it prints, what it returns, how long it takes to say so."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sightline import __version__, cli
from sightline.errors import DataError, RecipeError, UserError, UserErrors
from sightline.runtime import seed_everything


def fake_command(monkeypatch: pytest.MonkeyPatch, outcome: object, *, subcommands: bool = False) -> list[Namespace]:
    """Put a command `fake` on the table that raises the outcome, if it is an exception; gives what it was run with."""
    calls: list[Namespace] = []

    def arguments(parser: ArgumentParser) -> None:
        if subcommands:
            parser = parser.add_subparsers(required=True).add_parser("sub")
        parser.add_argument("recipe")
        parser.add_argument("overrides", nargs="*")
        parser.add_argument("--work-dir")

    def run(args: Namespace) -> None:
        """Pretend."""
        calls.append(args)
        if isinstance(outcome, BaseException):
            raise outcome

    monkeypatch.setitem(sys.modules, "fake_module", SimpleNamespace(arguments=arguments, run=run))
    monkeypatch.setitem(cli.COMMANDS, "fake", ("fake_module", "pretend"))
    return calls


@pytest.mark.parametrize("flag", ["-h", "--help", "help"])
def test_help_names_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


def test_no_command_prints_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: sightline" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-v", "--version", "version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    assert capsys.readouterr().out == f"sightline {__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*name.split(), "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: sightline {name} [-h]")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trian"], "error: no command is called 'trian'; did you mean train?"),
        (["mm-bench"], "error: no command is called 'mm-bench'; did you mean mmbench?"),
        (["xyzzy"], "error: no command is called 'xyzzy'; `sightline --help` lists them"),
        (["recipe", "chekc", "a.yaml"], "error: no command is called 'recipe chekc'; did you mean recipe check?"),
    ],
)
def test_unknown_commands(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_a_users_error_is_a_line_each_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command(monkeypatch, RecipeError("a.yaml: lr: wrong\nb.yaml: zzz: unknown\na.yaml: lr: wrong"))
    assert cli.main(["fake", "a.yaml"]) == 2
    assert capsys.readouterr().err == "error: a.yaml: lr: wrong\nerror: b.yaml: zzz: unknown\n"


def test_what_a_file_is_called_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command(monkeypatch, UserError("no image \x1b[31m\u202e\a.png"))
    assert cli.main(["fake", "a.yaml"]) == 2
    assert capsys.readouterr().err == "error: no image \\x1b[31m\\u202e\\x07.png\n"


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake_command(monkeypatch, ZeroDivisionError("no"))
    assert cli.main(["fake", "a.yaml"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("ZeroDivisionError: no\n")


def test_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command(monkeypatch, KeyboardInterrupt())
    assert cli.main(["fake", "a.yaml"]) == 130


def test_overrides_may_stand_on_both_sides_of_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_command(monkeypatch, None)
    assert cli.main(["fake", "a.yaml", "x=1", "--work-dir", "w", "y=2"]) == 0
    assert calls == [Namespace(recipe="a.yaml", overrides=["x=1", "y=2"], work_dir="w")]


def test_commands_may_have_subcommands(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_command(monkeypatch, None, subcommands=True)
    assert cli.main(["fake", "sub", "a.yaml", "x=1", "--work-dir", "w"]) == 0
    assert calls[0].overrides == ["x=1"]


def test_wrong_flags_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["list-cfg", "--zzz"])
    assert end.value.code == 2
    assert "unrecognized arguments: --zzz" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "sightline", "recipe", "schema"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's way to close standard output")
def test_a_closed_output_is_no_error() -> None:
    done = subprocess.run(f"'{sys.executable}' -m sightline list-cfg >&-", shell=True, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_full_disk_is_a_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "sightline", "list-cfg"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == ["error: the output: No space left on device; make room and call again"]


def test_characters_that_the_terminal_cannot_show_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import sys, types
from sightline import cli
def run(args): print("\u732b \u00b1")
sys.modules["fake_module"] = types.SimpleNamespace(arguments=lambda parser: None, run=run)
cli.COMMANDS["fake"] = ("fake_module", "pretend")
sys.exit(cli.main(["fake"]))
"""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"\\u732b \xb1\n")


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_that_is_none_is_named(seed: int) -> None:
    with pytest.raises(UserError, match=f"the seed {seed} is out of range"):
        seed_everything(seed)


def test_help_is_quick() -> None:
    """It imports little: what takes time is torch and its like, and pydantic."""
    script = (
        "import sys; before = len(sys.modules); from sightline import cli; cli.main(['--help']);"
        "print(len(sys.modules) - before, *{'torch', 'transformers', 'numpy', 'pydantic', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    modules, *heavy = done.stdout.splitlines()[-1].split()
    assert heavy == [] and int(modules) < 150


def test_list_cfg(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list-cfg", "-p", "V15_7b_PRE"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip("=") == "CONFIGS"
    assert lines[3:] == ["llava_v15_7b_pretrain", "=" * 60]
    assert cli.main(["list-cfg"]) == 0
    names = capsys.readouterr().out.splitlines()[1:-1]
    assert names == sorted(names) and {"llava_v15_7b_finetune", "llava_v15_7b_pretrain"} <= set(names)
    assert not {"pretrain", "finetune"} & set(names), "bases are incomplete and cannot be trained"


def test_copy_cfg_makes_a_recipe_that_stands_on_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, copy = "llava_v15_7b_finetune", tmp_path / "mine" / "llava_v15_7b_finetune_copy.yaml"
    assert cli.main(["copy-cfg", name, str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out == f"Copy to {copy}\n"
    assert cli.main(["recipe", "show", name]) == cli.main(["recipe", "show", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]

    copy.write_text("mine: now")
    assert cli.main(["copy-cfg", name, str(tmp_path / "mine")]) == 2
    assert capsys.readouterr().err == f"error: {copy}: is there already; nothing was copied\n"
    assert copy.read_text() == "mine: now"


def test_copy_cfg_of_an_unknown_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["copy-cfg", "llava_v15_7b_finetun", str(tmp_path)]) == 2
    assert "did you mean llava_v15_7b_finetune" in capsys.readouterr().err


def test_recipe_check_names_all_errors_of_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, gone = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "gone.yaml"
    good.write_text("base: pretrain\nmodel: {from_model: m}\ndata: [{path: x.json}]")
    bad.write_text(good.read_text() + "\noptim: {lr: fast, learning_rate: 1}")
    assert cli.main(["recipe", "check", str(good), str(bad), str(gone)]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{good}: ok\n"
    assert printed.err.splitlines() == [
        f'error: {bad}: optim.lr: must be a number, not "fast"',
        f"error: {bad}: optim.learning_rate: unknown key; did you mean optim.lr?",
        f"error: {gone}: cannot be read: No such file or directory",
    ]


def test_recipe_show_applies_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "show", "llava_v15_7b_pretrain", "optim.lr=5e-4"]) == 0
    assert "\n  lr: 0.0005\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["data", "check"], ["recipe", "check"], ["plan"], ["data", "stats"]])
def test_a_path_that_is_too_long_is_no_bug(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "x" * 5000 + ".json"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1


@pytest.mark.parametrize("end", ["\n", "\r", "\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_what_a_row_holds_makes_no_second_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    for error in (DataError(f"rows.json: row 1: no role {end}error: all is well"), UserError(f"a{end}b")):
        fake_command(monkeypatch, error)
        assert cli.main(["fake", "a.yaml"]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and ascii(end)[1:-1] in said


def test_what_a_library_quotes_is_cut_in_the_middle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command(monkeypatch, DataError(f"a.zip is damaged ({'x' * 5000}); fetch it again"))
    assert cli.main(["fake", "a.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: a.zip is damaged (xxx") and said.endswith("); fetch it again\n") and len(said) < 1050


def test_errors_that_are_several_survive_a_pipe_between_processes() -> None:
    for error in (RecipeError("a\nb"), UserErrors("a", "b")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == "a\nb"


def test_lines_into_a_pipe_come_one_by_one() -> None:
    script = (
        "import sys, time; from sightline import cli; cli._dispatch = lambda argv: print('first') or time.sleep(60);"
        "cli.main(['x'])"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 30)
        process.kill()
        assert ready, "it is written when it is printed, not when the command ends"
