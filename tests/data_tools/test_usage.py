"""The command line: wrong commands, dry runs, and what is said."""

from pathlib import Path

import pytest

from tests.data_tools.conftest import write_classes

USAGE = {
    "no source": [],
    "two sources": ["a", "b"],
    "size": ["a", "--size", "0"],
    "quality of lossless": ["a", "--quality", "90"],
    "quality range": ["a", "--store", "jpeg", "--quality", "101"],
    "colour": ["a", "--background", "no-colour"],
    "append and overwrite": ["a", "--append", "--overwrite"],
    "export without folder": ["--export", "f.h5"],
    "inspect and export": ["--inspect", "f.h5", "--export", "f.h5", "x"],
    "unknown option": ["a", "--sise", "3"],
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_commands_exit_with_2(name: str, command):
    code, _, err = command(*USAGE[name])
    assert code == 2
    assert "Traceback" not in err


def test_the_debug_option_shows_where(tmp_path: Path, command):
    assert "Traceback" not in command(tmp_path / "missing")[2]
    code, _, err = command(tmp_path / "missing", "--debug")
    assert (code, "Traceback" in err) == (1, True)


def test_a_dry_run_writes_nothing(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("pets", "--dry-run")
    assert code == 0
    assert "axolotl" in out
    assert "would write data/pets-256.h5" in out
    assert not (tmp_path / "data").exists()


def test_the_next_command_is_said(tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "pets", {"a": 2})
    assert "train.py --config deep64" in command("pets", "--size", 64)[1]
    assert "train.py --config deep64 --data x.h5" in command("pets", "--size", 64, "--out", "x.h5")[1]
    assert "build it again with --size 32" in command("pets", "--size", 40)[1]


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path: Path, command):
    write_classes(tmp_path / "src", {"red\x1b[31m": 1, "two\nlines": 1})
    (tmp_path / "src" / "bell\x07.txt").write_text("?")
    _, out, _ = command(tmp_path / "src", "--size", 8, "--out", tmp_path / "f.h5")
    assert r"red\x1b[31m" in out
    assert r"two\nlines" in out
    assert r"bell\x07.txt" in out
    assert not {"\x1b", "\x07"} & set(out)
