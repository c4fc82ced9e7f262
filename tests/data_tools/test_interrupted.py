"""Builds that are killed, interrupted, or run out of disk: nothing is lost, and nothing half-done has the name."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools import build, commands, journal, processing, schema
from data_tools.schema import open_dataset
from tests.data_tools.conftest import write_classes
from tests.data_tools.dying import dies_after_30, run_and_die

CALLS = [
    (journal, "_sync", 1),
    (journal, "_sync", 60),
    (journal.Workspace, "begin", 1),
    (build, "complete_raw", 1),
    (build, "verify", 1),
    (build, "_sync_folder", 1),
    (os, "replace", 1),
    (os, "replace", 2),
    (os, "replace", 3),
    (commands, "_publish_report", 1),
    (journal.Workspace, "remove", 1),
    (os, "fsync", 1),
    (os, "fsync", 90),
]


@pytest.mark.parametrize(("store", "workers"), [("raw", 1), ("webp", 1), ("raw", 2)])
def test_killed_at_random_moments_the_file_is_the_same(store, workers, crowd: Path, tmp_path: Path, command):
    arguments = [str(crowd), "--size", "16", "--store", store, "--workers", str(workers), "--out"]
    whole, out = tmp_path / "whole.h5", tmp_path / "out.h5"
    began = time.monotonic()
    assert run_and_die([*arguments, str(whole)], lambda: None) == 0
    duration = time.monotonic() - began
    moments, killed = random.Random(store), 0
    for _ in range(7):
        moment = moments.uniform(0.0, 0.9) * duration

        def die(moment=moment) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(moment, 1e-3))

        status = run_and_die([*arguments, str(out)], die)
        if os.WIFSIGNALED(status):
            killed += 1
            assert os.WTERMSIG(status) == signal.SIGALRM
        elif out.exists():  # it went through, from where the one before had come to
            assert out.read_bytes() == whole.read_bytes()
            out.unlink()
    assert killed > 0
    code, _, err = command(*arguments, out)
    assert (code, err) == (0, "")
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.h5.partial").exists()


@pytest.mark.parametrize(("owner", "name", "count"), CALLS, ids=[f"{row[1]}-{row[2]}" for row in CALLS])
def test_killed_in_the_middle_of_any_step_the_file_is_the_same(owner, name, count, crowd, tmp_path, command):
    """SIGKILL instead of the n-th call of a function."""
    arguments = [str(crowd), "--size", "16", "--workers", "1", "--out"]
    out = tmp_path / "out.h5"

    def die() -> None:
        original, calls = getattr(owner, name), 0

        def killer(*args, **options):
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        setattr(owner, name, killer)

    assert os.WTERMSIG(run_and_die([*arguments, str(out)], die)) == signal.SIGKILL
    if out.exists():  # only whole files have the name
        schema.verify(open_dataset(out))
    code, text, err = command(*arguments, out)
    assert (code, err) == (0, "")
    if name == "_sync" and count == 60:
        assert "Going on after 59 of 150 files." in text
    assert command(*arguments, tmp_path / "whole.h5")[0] == 0
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not (tmp_path / "out.h5.partial").exists()
    skipped = [(tmp_path / f"{name}.h5.report" / "skipped.tsv").read_text() for name in ("out", "whole")]
    assert skipped[0] == skipped[1]


def test_worker_processes_end_with_a_killed_parent(crowd: Path, tmp_path: Path):
    script = "import sys; from data_tools.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [str(crowd), "--size", "512", "--workers", "2", "--out", str(tmp_path / "out.h5")]
    parent = subprocess.Popen([sys.executable, "-c", script, *arguments], start_new_session=True)
    children: set[int] = set()
    while parent.poll() is None and len(children) < 2:
        children = {int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and parent_of(pid) == parent.pid}
    assert parent.poll() is None
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(child) for child in children)


def parent_of(pid: str) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class DeadlyReader:
    """Kills its process when it meets one file."""

    def read(self, file):
        if file.path == "a/0003.png":
            os._exit(9)
        return Path(file.where).read_bytes()

    def prefetch(self, files):
        pass


def test_a_file_that_kills_its_process_is_left_out(crowd: Path, tmp_path: Path):
    from data_tools.folders import scan

    files = scan(crowd).files
    settings, jobs = processing.ImageSettings(size=16), ((file, None) for file in files)
    outcomes = list(processing.process_all(jobs, settings, DeadlyReader(), 2, tmp_path / "scratch"))
    assert len(outcomes) == len(files)
    reasons = {file.path: outcome.reason for file, outcome in zip(files, outcomes, strict=True) if outcome.reason}
    assert set(reasons) == {"a/0003.png", "a/0007.png", "c/0000.png", "c/0039.png"}
    assert "kills the process" in reasons["a/0003.png"]


def test_the_work_of_another_build_is_neither_continued_nor_lost(crowd: Path, tmp_path: Path, command):
    out = tmp_path / "out.h5"
    run_and_die([str(crowd), "--size", "16", "--workers", "1", "--out", str(out)], dies_after_30)
    code, _, err = command(crowd, "--size", 24, "--out", out)
    assert (code, "size 16 instead of 24" in err, "add --overwrite" in err) == (1, True, True)
    code, _, err = command(crowd, "--size", 16, "--exclude", "c", "--out", out)
    assert (code, "exclude [] instead of ['c']" in err) == (1, True)
    code, text, _ = command(crowd, "--size", 16, "--out", out)
    assert (code, "Going on after 29 of 150 files." in text) == (0, True)
    run_and_die([str(crowd), "--size", "16", "--workers", "1", "--overwrite", "--out", str(out)], dies_after_30)
    code, text, _ = command(crowd, "--size", 24, "--out", out, "--overwrite")
    assert (code, "Going on" in text) == (0, False)
    assert open_dataset(out).header.size == 24
    assert not (tmp_path / "out.h5.partial").exists()


def test_what_a_finished_build_left_is_not_in_the_way_of_an_append(tmp_path: Path, command):
    source, out = write_classes(tmp_path / "src", {"a": 5}), tmp_path / "out.h5"

    def dies_while_tidying() -> None:
        journal.Workspace.remove = lambda self: os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(run_and_die([str(source), "--size", "16", "--out", str(out)], dies_while_tidying))
    later = write_classes(tmp_path / "later", {"b": 3})
    code, _, err = command(later, "--append", "--out", out)
    assert (code, err) == (0, "")
    assert open_dataset(out).header.images == 8


def test_an_interrupted_append_outlives_the_command_that_built_the_file(tmp_path: Path, command):
    source, out = write_classes(tmp_path / "src", {"a": 20}), tmp_path / "out.h5"
    command(source, "--size", 16, "--out", out)
    later = write_classes(tmp_path / "later", {"b": 50})
    run_and_die([str(later), "--append", "--workers", "1", "--out", str(out)], dies_after_30)
    code, text, _ = command(source, "--size", 16, "--out", out)
    assert (code, "up to date" in text) == (0, True)
    code, text, _ = command(later, "--append", "--workers", 1, "--out", out)
    assert (code, "Going on after 29 of 50 files." in text) == (0, True)
    assert open_dataset(out).header.images == 70


def test_a_full_disk_stops_with_a_sentence_and_the_build_goes_on_later(crowd: Path, tmp_path: Path, command):
    out = tmp_path / "out.h5"

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit is then an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    status = run_and_die([str(crowd), "--size", "16", "--workers", "1", "--out", str(out)], limit_file_size)
    assert os.WEXITSTATUS(status) == 1
    assert not out.exists()
    code, text, _ = command(crowd, "--size", 16, "--workers", 1, "--out", out)
    assert (code, "Going on after" in text) == (0, True)
    command(crowd, "--size", 16, "--workers", 1, "--out", tmp_path / "whole.h5")
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_full_disk_while_hdf5_writes_is_one_sentence(crowd: Path, tmp_path: Path, command, monkeypatch):
    """HDF5 notices only when it closes the file, and then raises an error of its own with a page of text."""
    arguments = [str(crowd), "--size", "16", "--store", "webp", "--workers", "1", "--out", str(tmp_path / "out.h5")]

    def fill_the_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        original = build.write_encoded

        def limited(*args) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            original(*args)

        build.write_encoded = limited

    assert os.WEXITSTATUS(run_and_die(arguments, fill_the_disk)) == 1
    assert not (tmp_path / "out.h5").exists()
    code, text, _ = command(*arguments)
    assert (code, "Going on after 150 of 150 files." in text) == (0, True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    code, _, err = command(*arguments, "--overwrite")
    assert (code, "5.0 kB free: free some and give the same command again" in err) == (1, True)


def test_ctrl_c_is_one_line_whenever_it_comes(crowd: Path, tmp_path: Path, command):
    """The terminal sends it to the workers as well, which may just be starting."""
    script = "import sys; from data_tools.cli import main; print('started', flush=True); sys.exit(main(sys.argv[1:]))"
    arguments = [str(crowd), "--size", "256", "--workers", "2", "--no-report", "--out", str(tmp_path / "out.h5")]
    interrupted = 0
    for delay in (0.05, 0.2, 0.4, 0.7):
        command_line = [sys.executable, "-c", script, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command_line, start_new_session=True, text=True, **pipes) as process:
            process.stdout.readline()
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate()
        if process.returncode == 1:
            interrupted += 1
            assert err.strip() == "build-dataset: interrupted; the same command goes on from here."
        else:  # it came after the end
            assert (tmp_path / "out.h5").exists()
    assert interrupted > 0
    assert command(*arguments)[0] == 0
    arguments[-1] = str(tmp_path / "whole.h5")
    assert command(*arguments)[0] == 0
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def outcomes_of(count: int) -> list[processing.Outcome]:
    """Every third file is left out; the others are images of different lengths."""
    made = []
    for index in range(count):
        stored = bytes([index]) * (40 + index)
        image = processing.Outcome(stored, schema.digest_of(stored), 10 + index, 20, 10, ("odd",) * (index % 2))
        made.append(processing.Outcome(reason=f"bad {index}") if index % 3 == 2 else image)
    return made


def test_ctrl_c_at_any_line_of_recording_leaves_a_true_journal(tmp_path: Path, monkeypatch):
    """An interruption may lose what came last, which is done again; it never attributes it to another file."""
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.0)
    outcomes, code = outcomes_of(8), journal.Workspace.record.__code__
    whole, tried = journal.Ledger(), 0
    for outcome in outcomes:
        whole.add(outcome, len(outcome.stored))

    def interrupts(at: int):
        passed = 0

        def trace(frame, event, argument):
            nonlocal passed
            if frame.f_code is not code:
                return None
            if event == "line":
                passed += 1
                if passed == at:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        return trace

    while True:
        tried += 1
        with journal.Workspace(tmp_path / f"{tried}.h5") as workspace:
            workspace.begin({})
            workspace.images.touch()
            sys.settrace(interrupts(tried))
            try:
                workspace.record(iter(outcomes), lambda outcome: None)
                break  # it went through
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
        with journal.Workspace(tmp_path / f"{tried}.h5") as workspace:
            workspace.resume(0)
            ledger, done = workspace.ledger, workspace.ledger.done
            assert ledger.skipped == [entry for entry in whole.skipped if entry[0] < done]
            assert ledger.remarks == [entry for entry in whole.remarks if entry[0] < done]
            images = len(ledger.files)
            for name in ("files", "lengths", "widths", "heights", "sides"):
                assert getattr(ledger, name) == getattr(whole, name)[:images]
            stored = b"".join(outcome.stored for outcome in outcomes[:done])
            assert workspace.images.read_bytes() == stored
            workspace.record(iter(outcomes[done:]), lambda outcome: None)
            assert workspace.images.read_bytes().startswith(b"".join(outcome.stored for outcome in outcomes))
    assert tried > 50


@pytest.mark.parametrize("spoil", ["images", "line", "twice", "order"])
def test_a_journal_counts_as_far_as_it_is_true(spoil: str, tmp_path: Path):
    outcomes = outcomes_of(6)
    with journal.Workspace(tmp_path / "f.h5") as workspace:
        workspace.images.touch()
        workspace.record(iter(outcomes), lambda outcome: None)
        lines = workspace.journal.read_bytes().splitlines(keepends=True)
        if spoil == "images":  # lost by the disk after the lines were written
            os.truncate(workspace.images, 40 + 41 + 43)
        lines[3:] = {"images": lines[3:], "line": [lines[3][:-9]], "twice": [lines[2], *lines[3:]]}.get(
            spoil, [lines[4], lines[3], lines[5]]
        )
        workspace.journal.write_bytes(b"".join(lines))
    with journal.Workspace(tmp_path / "f.h5") as workspace:
        workspace.resume(0)
        assert workspace.ledger.done == (4 if spoil == "images" else 3)
        assert workspace.journal.read_bytes() == b"".join(lines[: workspace.ledger.done])
        assert workspace.images.stat().st_size == sum(
            len(outcome.stored) for outcome in outcomes[: workspace.ledger.done]
        )


def test_the_lock_is_closed_before_its_folder_goes(tmp_path: Path, monkeypatch):
    """Network file systems keep a deleted file that is open in its folder, under another name."""
    original, closed = Path.rmdir, []

    def rmdir(path: Path) -> None:
        closed.append(workspace._lock.closed)
        original(path)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    with journal.Workspace(tmp_path / "f.h5") as workspace:
        pass
    assert closed == [True]
    assert list(tmp_path.iterdir()) == []
