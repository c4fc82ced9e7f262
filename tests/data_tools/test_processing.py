"""Worker processes: what they give, and that they end, whatever happens."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools import processing
from data_tools.build import Build, BuildError, Plan, digest_inputs
from data_tools.folders import scan
from data_tools.processing import ImageSettings, Outcome, WorkerError, process, process_all
from data_tools.schema import open_dataset
from data_tools.sources import FolderReader
from tests.data_tools.conftest import picture, write_classes
from tests.data_tools.dying import dies_after_30, run_and_die


def jobs_of(source: Path) -> list[processing.Job]:
    return [(file, None) for file in scan(source).files]


def test_an_error_in_the_parent_ends_the_workers_at_once(crowd: Path, tmp_path: Path):
    """Also where the iterator is left suspended, and closed by whoever made it."""
    before = set(multiprocessing.active_children())
    outcomes = process_all(jobs_of(crowd), ImageSettings(size=16), FolderReader(), 2, tmp_path / "scratch")
    next(outcomes)
    assert len(set(multiprocessing.active_children()) - before) == 2
    outcomes.close()
    assert set(multiprocessing.active_children()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_process_and_no_scratch_file(crowd: Path, tmp_path: Path, command, monkeypatch):
    before = set(multiprocessing.active_children())

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_tools.direct.DirectWriter.write", full)
    code, _, err = command(crowd, "--size", 16, "--workers", 2, "--out", tmp_path / "f.h5")
    assert (code, err) == (1, "build-dataset: the disk is full: free some space and give the same command again.\n")
    assert set(multiprocessing.active_children()) == before
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_recording_ends_the_workers_before_it_is_reported(crowd: Path, tmp_path: Path):
    """And not when its traceback, which holds the suspended iterator, is forgotten."""
    before, files = set(multiprocessing.active_children()), scan(crowd).files
    settings = ImageSettings(size=16)
    plan = Plan(
        tmp_path / "f.h5", "crowd", files, ("a", "b", "c"), settings, FolderReader(), "{}", digest_inputs(files)
    )

    def fail(outcome: Outcome) -> None:
        raise ZeroDivisionError

    with Build(plan) as work, pytest.raises(ZeroDivisionError) as caught:
        work.process(2, fail)
    assert caught.traceback
    assert set(multiprocessing.active_children()) == before


class EndingReader(FolderReader):
    """Ends every process that is not the one that made it, at its start."""

    def __init__(self, parent: int):
        self.parent = parent

    def __setstate__(self, state: dict) -> None:
        if os.getpid() != state["parent"]:
            os._exit(9)


def test_processes_that_end_at_once_are_not_blamed_on_the_images(crowd: Path, tmp_path: Path):
    outcomes = process_all(jobs_of(crowd), ImageSettings(size=16), EndingReader(os.getpid()), 2, tmp_path / "scratch")
    with pytest.raises(WorkerError, match="end as soon as they are started"):
        list(outcomes)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_cannot_be_started_are_one_sentence(crowd: Path, tmp_path: Path, command, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen._launch", refuse)
    code, _, err = command(crowd, "--size", 16, "--workers", 2, "--out", tmp_path / "f.h5")
    assert (code, "worker processes cannot be started (broken pipe): try --workers 1" in err) == (1, True)


def test_ctrl_c_twice_ends_the_build(crowd: Path, tmp_path: Path):
    script = "import sys; from data_tools.cli import main; print('started', flush=True); sys.exit(main(sys.argv[1:]))"
    arguments = [str(crowd), "--size", "256", "--workers", "2", "--no-report", "--out", str(tmp_path / "out.h5")]
    for delay, gap in ((0.3, 0.02), (0.5, 0.1), (0.6, 0.0), (0.8, 0.05)):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, "-c", script, *arguments], start_new_session=True, **pipes) as parent:
            parent.stdout.readline()
            time.sleep(delay)
            for pause in (gap, 0.0):
                try:
                    os.killpg(parent.pid, signal.SIGINT)
                except ProcessLookupError:
                    break
                time.sleep(pause)
            parent.wait(timeout=30)


def test_ctrl_c_is_held_back_and_not_forgotten():
    done = []

    def interrupted() -> None:
        with processing._uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_does_not_fit_into_memory_is_left_out(crowd: Path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(processing, "to_square", refuse)
    assert process(jobs_of(crowd)[0], ImageSettings(), FolderReader()).reason == "does not fit into memory"


def test_sizes_are_those_of_the_upright_source_and_limits_those_of_the_box(tmp_path: Path):
    path = tmp_path / "src" / "a" / "x.jpg"
    path.parent.mkdir(parents=True)
    exif = picture(1).getexif()
    exif[0x0112] = 6  # lies on its side
    picture(1, 60, 40).save(path, exif=exif)
    (job,) = jobs_of(tmp_path / "src")
    outcome = process(job, ImageSettings(size=8), FolderReader())
    assert (outcome.width, outcome.height, outcome.side) == (40, 60, 40)
    assert process(job, ImageSettings(size=8, crop="pad"), FolderReader()).side == 60
    boxed = process((job[0], (0, 0, 10, 30)), ImageSettings(size=8, min_size=11), FolderReader())
    assert boxed.reason == "too small: 10 x 30 pixels, --min-size 11"
    boxed = process((job[0], (0, 0, 10, 30)), ImageSettings(size=8, min_size=10), FolderReader())
    assert (boxed.width, boxed.height, boxed.side) == (40, 60, 10)


@pytest.mark.parametrize("change", ["mtime", "size", "box", "dedupe", "base", "order"])
def test_work_counts_only_for_the_very_same_plan(change: str, tmp_path: Path, command):
    """Whatever could change a pixel or a row makes it another build."""
    source = write_classes(tmp_path / "src", {"a": 3, "b": 2})
    files, settings = scan(source).files, ImageSettings(size=16)
    for name in ("one", "two"):
        other = write_classes(tmp_path / name, {"c": len(name)}, size=20 + len(name) + ord(name[0]) % 3)
        command(other, "--size", 16, "--out", tmp_path / f"{name}.h5")
    base = open_dataset(tmp_path / "one.h5") if change == "base" else None
    out = base.path if base else tmp_path / "f.h5"
    names = (*(base.class_names if base else ()), "a", "b")
    plan = Plan(out, "src", files, names, settings, FolderReader(), "{}", digest_inputs(files), base=base)
    with Build(plan) as work:
        work.copy_base()
        work.workspace.record(iter([Outcome(reason="left out")]), lambda outcome: None)
    with Build(plan) as work:
        assert work.resumed == 1
    first = files[0]
    if change == "base":
        os.replace(tmp_path / "two.h5", out)
        plan = replace(plan, base=open_dataset(out))
    elif change == "box":
        plan = replace(plan, boxes={first.path: (0, 0, 9, 9)})
    elif change == "dedupe":
        plan = replace(plan, dedupe=True)
    else:
        files = {
            "mtime": [first._replace(modified=first.modified + 1), *files[1:]],
            "size": [first._replace(size=first.size + 1), *files[1:]],
            "order": [files[1], first, *files[2:]],
        }[change]
        plan = replace(plan, files=files, inputs=digest_inputs(files))
    with pytest.raises(BuildError, match="holds the work of an interrupted build"):
        Build(plan).__enter__()


def test_copies_are_found_across_an_interruption(tmp_path: Path, command):
    source = write_classes(tmp_path / "src", {"a": 40})
    for number in range(35, 40):
        (source / "a" / f"{number:04d}.png").write_bytes((source / "a" / f"{number - 30:04d}.png").read_bytes())
    arguments = [str(source), "--size", "16", "--dedupe", "--workers", "1", "--out", str(tmp_path / "f.h5")]
    assert os.WIFSIGNALED(run_and_die(arguments, dies_after_30))
    code, text, _ = command(*arguments)
    assert (code, "Going on after 29 of 40 files." in text) == (0, True)
    assert open_dataset(tmp_path / "f.h5").header.images == 35
    assert "a/0035.png: exact duplicate of a/0005.png" in text
