"""Building: the same bytes for any number of workers and any number of interruptions, growth, and errors."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data_tools import build, cli, journal, processing, schema
from data_tools.schema import open_dataset
from tests.data_tools.conftest import encoded, picture, write_classes

STORES = ("raw", "png", "webp", "jpeg")
LOSSLESS = ("raw", "png", "webp")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 pictures, a few of them damaged, enough for worker processes to be used."""
    root = write_classes(tmp_path_factory.mktemp("crowd") / "crowd", {"b": 60, "a": 50, "c": 40})
    for name in ("a/0007.png", "c/0000.png", "c/0039.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


def pixels(path: Path) -> np.ndarray:
    layout = open_dataset(path)
    images = layout.open_images()
    if layout.header.store == "raw":
        return np.array(images)
    import io

    return np.stack([np.asarray(Image.open(io.BytesIO(images[row])).convert("RGB")) for row in range(len(images))])


@pytest.mark.parametrize("store", STORES)
def test_any_number_of_workers_gives_the_same_bytes(store: str, crowd: Path, tmp_path: Path, command):
    files = []
    for workers in (1, 2, 3):
        files.append(tmp_path / f"{workers}.h5")
        code, _, err = command(crowd, "--out", files[-1], "--size", 16, "--store", store, "--workers", workers)
        assert (code, err) == (0, "")
    assert len({path.read_bytes() for path in files}) == 1
    assert open_dataset(files[0]).header.images == 147


@pytest.mark.parametrize("crop", ["center", "top", "pad", "none"])
@pytest.mark.parametrize("store", LOSSLESS)
def test_stored_pixels_are_those_of_pillows_resize(store: str, crop: str, tmp_path: Path, command):
    image = picture(5, 50, 31)
    (tmp_path / "src" / "one").mkdir(parents=True)
    image.save(tmp_path / "src" / "one" / "wide.png")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "src" / "one" / "tall.png")
    command(tmp_path / "src", "--out", tmp_path / "f.h5", "--size", 20, "--store", store, "--crop", crop)
    tall, wide = image.transpose(Image.Transpose.ROTATE_90), image
    lanczos = Image.Resampling.LANCZOS
    if crop == "pad":
        expected = [Image.new("RGB", (20, 20), "white") for _ in range(2)]
        expected[0].paste(tall.resize((12, 20), lanczos), (4, 0))
        expected[1].paste(wide.resize((20, 12), lanczos), (0, 4))
    elif crop == "none":
        expected = [tall.resize((20, 20), lanczos), wide.resize((20, 20), lanczos)]
    else:
        top = 0 if crop == "top" else 9
        expected = [tall.crop((0, top, 31, top + 31)), wide.crop((9, 0, 40, 31))]
        expected = [part.resize((20, 20), lanczos) for part in expected]
    np.testing.assert_array_equal(pixels(tmp_path / "f.h5"), np.stack([np.asarray(part) for part in expected]))


def run_and_die(arguments: list[str], die: "callable") -> int:
    """Run build-dataset in a child process that dies by `die`; returns its wait status."""
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        journal.SYNC_SECONDS = 0.0
        die()
        os._exit(cli.main(arguments))
    return os.waitpid(child, 0)[1]


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
    (os, "fsync", 1),
    (os, "fsync", 90),
]


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


def test_a_file_that_kills_its_process_is_left_out(crowd: Path, tmp_path: Path):
    from data_tools.folders import scan

    files = scan(crowd).files
    settings, jobs = processing.ImageSettings(size=16), ((file, None) for file in files)
    outcomes = list(processing.process_all(jobs, settings, DeadlyReader(), 2, tmp_path / "scratch"))
    assert len(outcomes) == len(files)
    reasons = {file.path: outcome.reason for file, outcome in zip(files, outcomes, strict=True) if outcome.reason}
    assert set(reasons) == {"a/0003.png", "a/0007.png", "c/0000.png", "c/0039.png"}
    assert "kills the process" in reasons["a/0003.png"]


def test_the_same_command_again_does_nothing(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("pets", "--size", 16)[0] == 0
    out = tmp_path / "data" / "pets-16.h5"
    before = out.stat()
    code, text, _ = command("pets/", "--size", 16)
    assert code == 0
    assert "up to date" in text
    assert "train.py --config" in text or "--size 32" in text
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    code, _, err = command("pets", "--size", 16, "--crop", "top")
    assert code == 1
    assert "crop center instead of top" in err
    assert "--overwrite" in err
    assert command("pets", "--size", 16, "--crop", "top", "--overwrite")[0] == 0
    picture(99).save(pets / "cat" / "new.png")
    code, _, err = command("pets", "--size", 16, "--crop", "top")
    assert (code, "other files" in err) == (1, True)


def test_a_changed_picture_of_equal_size_is_noticed(tmp_path: Path, command):
    source = write_classes(tmp_path / "src", {"a": 3})
    command(source, "--size", 8, "--out", tmp_path / "f.h5")
    changed = source / "a" / "0001.png"
    data = bytearray(changed.read_bytes())
    changed.write_bytes(bytes(data))
    os.utime(changed, ns=(time.time_ns() + 10**9,) * 2)
    code, _, err = command(source, "--size", 8, "--out", tmp_path / "f.h5")
    assert (code, "a/0001.png is newer" in err) == (1, True)


def test_an_interrupted_build_of_other_settings_is_not_continued(crowd: Path, tmp_path: Path, command, monkeypatch):
    out = tmp_path / "out.h5"
    run_and_die([str(crowd), "--size", "16", "--workers", "1", "--out", str(out)], dies_after_30)
    assert json.loads((tmp_path / "out.h5.partial" / "plan.json").read_text())
    code, text, _ = command(crowd, "--size", 24, "--out", out)
    assert (code, "starting afresh" in text) == (0, True)
    assert open_dataset(out).header.size == 24


def dies_after_30() -> None:
    original, calls = journal._sync, [0]

    def killer(*args):
        calls[0] += 1
        if calls[0] == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    journal._sync = killer


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


def test_too_little_space_is_noticed_before_the_start(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    code, _, err = command(pets, "--size", 64, "--out", tmp_path / "f.h5")
    assert (code, "more, but" in err, "5.0 kB free" in err) == (1, True, True)
    assert sorted(tmp_path.iterdir()) == [pets]


def test_an_output_that_cannot_be_written_is_one_sentence(pets: Path, tmp_path: Path, command):
    (tmp_path / "file").write_text("in the way")
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "file" / "f.h5")
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert "file" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_sentence(pets: Path, tmp_path: Path, command):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "locked" / "f.h5")
    assert (code, "permission denied" in err) == (1, True)


def test_two_builds_of_one_file_do_not_mix(pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    with journal.Workspace(out):
        code, _, err = command(pets, "--size", 16, "--out", out)
    assert (code, "another build" in err) == (1, True)


def test_damage_between_building_and_verifying_is_found(pets: Path, tmp_path: Path, command, monkeypatch):
    original = build.complete_raw

    def complete_and_damage(path: Path, contents, offset: int) -> None:
        original(path, contents, offset)
        with open(path, "r+b") as file:
            file.seek(offset + 1000)
            file.write(b"\0\1\2\3")

    monkeypatch.setattr(build, "complete_raw", complete_and_damage)
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    assert (code, "was not written correctly" in err) == (1, True)
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize("store", LOSSLESS)
def test_appending_keeps_rows_ids_and_the_old_fingerprint(store: str, pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    options = ["--out", out, "--workers", 1]
    assert command(pets, "--size", 16, "--store", store, *options)[0] == 0
    old, old_pixels = open_dataset(out), pixels(out)
    old_sources = list(old.sources)
    write_classes(tmp_path / "more", {"cat": 2, "bee": 2, "zebu": 1}, size=30)
    for path in (tmp_path / "more").rglob("*.png"):
        target = pets / path.parent.name / f"later-{path.name}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    code, _, err = command(pets, "--append", *options)
    assert (code, err) == (0, "")
    grown = open_dataset(out)
    schema.verify(grown)
    assert grown.class_names == ["axolotl", "cat", "dog", "bee", "zebu"]
    assert grown.sources[:12] == old_sources
    assert [path.split("/")[0] for path in grown.sources[12:]] == ["cat", "cat", "bee", "bee", "zebu"]
    np.testing.assert_array_equal(grown.labels, [*old.labels, 1, 1, 3, 3, 4])
    np.testing.assert_array_equal(pixels(out)[:12], old_pixels)
    assert [generation.rows for generation in grown.generations] == [12, 17]
    assert [generation.classes for generation in grown.generations] == [3, 5]
    assert schema.extends(grown, old.header.fingerprint) == grown.generations[0]
    assert schema.extends(grown, "0" * 64) is None
    code, text, _ = command(pets, "--append", *options)
    assert (code, "up to date" in text) == (0, True)
    assert command(pets, "--size", 16, "--store", store, *options)[0] == 0


def test_a_killed_append_leaves_the_old_file_and_goes_on(pets: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    command(pets, "--size", 16, "--out", out)
    before = out.read_bytes()
    write_classes(pets, {"zebu": 40})
    arguments = [str(pets), "--append", "--workers", "1", "--out", str(out)]
    assert os.WIFSIGNALED(run_and_die(arguments, dies_after_30))
    assert out.read_bytes() == before
    shutil.copy(out, tmp_path / "g.h5")
    code, text, _ = command(*arguments)
    assert (code, "Going on after 29 of 40 files." in text) == (0, True)
    command(pets, "--append", "--workers", 1, "--out", tmp_path / "g.h5")
    assert out.read_bytes() == (tmp_path / "g.h5").read_bytes()


def test_appending_refuses_other_image_settings(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    code, _, err = command(pets, "--size", 16, "--crop", "pad", "--append", "--out", tmp_path / "f.h5")
    assert (code, "--crop pad differs from center" in err) == (2, True)


def test_appending_another_source_with_equal_paths_adds_its_images(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    (tmp_path / "others" / "cat").mkdir(parents=True)
    picture(77).save(tmp_path / "others" / "cat" / "0000.png")
    assert command(tmp_path / "others", "--append", "--out", tmp_path / "f.h5")[0] == 0
    assert open_dataset(tmp_path / "f.h5").header.images == 13


def test_dedupe_leaves_out_later_copies_and_says_of_what(pets: Path, tmp_path: Path, command):
    shutil.copy(pets / "cat" / "0001.png", pets / "dog" / "copy.png")
    image = Image.open(pets / "cat" / "0002.png")
    (pets / "dog" / "other-file-same-pixels.bmp").write_bytes(encoded(image, "BMP"))
    code, text, _ = command(pets, "--size", 16, "--out", tmp_path / "all.h5")
    assert "2 exact duplicates" in text
    for workers in (1, 2):
        code, text, _ = command(
            pets, "--size", 16, "--dedupe", "--out", tmp_path / f"{workers}.h5", "--workers", workers
        )
        assert code == 0
        assert "dog/copy.png: exact duplicate of cat/0001.png" in text
        assert open_dataset(tmp_path / f"{workers}.h5").header.images == 12
    picture(5).save(pets / "zzz.png")
    shutil.copy(pets / "cat" / "0003.png", pets / "dog" / "later.png")
    code, _, err = command(pets, "--dedupe", "--append", "--out", tmp_path / "1.h5")
    assert (code, "nothing to append" in err) == (1, True)


def test_classes_without_a_usable_image_get_no_id(pets: Path, tmp_path: Path, command):
    (pets / "broken").mkdir()
    (pets / "broken" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    code, _, err = command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    assert code == 0
    assert "1 class without a usable image got no id: 'broken'" in err
    assert open_dataset(tmp_path / "f.h5").class_names == ["axolotl", "cat", "dog"]


def test_boxes_choose_the_part_of_an_image(tmp_path: Path, command):
    source = tmp_path / "src"
    (source / "a").mkdir(parents=True)
    image = picture(3, 60, 40)
    image.save(source / "a" / "boxed.png")
    image.save(source / "a" / "outside.png")
    image.save(source / "a" / "whole.png")
    lines = ["path,x0,y0,x1,y1", "a/boxed.png,10,5,34,29", "a/outside.png,100,100,120,120", "a/bxed.png,0,0,1,1"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    code, out, err = command(source, "--size", 24, "--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "f.h5")
    assert code == 0
    assert "'a/bxed.png' (did you mean 'a/boxed.png'" in err
    assert "1 of 3 files have no box" in err
    assert "a/outside.png: its box is outside: (100, 100, 120, 120) of 60 x 40 pixels" in out
    stored = pixels(tmp_path / "f.h5")
    np.testing.assert_array_equal(stored[0], np.asarray(image)[5:29, 10:34])


def test_min_size_leaves_out_what_would_be_enlarged_too_much(tmp_path: Path, command):
    source = tmp_path / "src"
    (source / "a").mkdir(parents=True)
    for size in (8, 12, 40):
        picture(size, size, size + 5).save(source / "a" / f"{size:02d}.png")
    _, out, _ = command(source, "--size", 16, "--min-size", 10, "--out", tmp_path / "f.h5")
    assert "a/08.png: too small: 8 x 13 pixels" in out
    assert "1 image of fewer than 16 px enlarged" in out
    assert open_dataset(tmp_path / "f.h5").sources == ["a/12.png", "a/40.png"]


def test_a_file_is_read_by_plain_h5py(pets: Path, tmp_path: Path, command):
    command(pets, "--size", 16, "--out", tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["images"].shape == (12, 16, 16, 3)
        assert file["images"].chunks is None
        assert file["labels"][:].tolist() == [0] * 3 + [1] * 5 + [2] * 4
        assert list(file["class_names"].asstr()) == ["axolotl", "cat", "dog"]
        assert file["sources"].asstr()[3] == "cat/0000.png"
        assert file.attrs["size"] == 16
        np.testing.assert_array_equal(file["images"][:], pixels(tmp_path / "f.h5"))


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


def test_an_append_killed_at_random_moments_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path, command):
    source = write_classes(tmp_path / "src", {"a": 30, "b": 30})
    out = tmp_path / "out.h5"
    command(source, "--size", 16, "--out", out)
    old = out.read_bytes()
    write_classes(source, {"a/more": 40, "c": 40})
    shutil.copy(out, tmp_path / "whole.h5")
    began = time.monotonic()
    arguments = [str(source), "--append", "--workers", "1", "--out"]
    assert run_and_die([*arguments, str(tmp_path / "whole.h5")], lambda: None) == 0
    duration, moments = time.monotonic() - began, random.Random(0)
    whole = (tmp_path / "whole.h5").read_bytes()
    for _ in range(10):
        moment = moments.uniform(0, duration)

        def die(moment=moment) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(moment, 1e-3))

        run_and_die([*arguments, str(out)], die)
        assert out.read_bytes() in (old, whole)
    assert command(*arguments, out)[0] == 0
    assert out.read_bytes() == whole


def test_append_finds_the_file_of_its_source(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command("pets", "--size", 16)
    picture(70).save(pets / "cat" / "new.png")
    code, out, _ = command("pets", "--append")
    assert (code, "Appending 1 file; 12 paths of this source are in data/pets-16.h5 already." in out) == (0, True)
    command("pets", "--size", 8)
    code, _, err = command("pets", "--append")
    assert (code, "data/pets-16.h5 and data/pets-8.h5 are there" in err) == (2, True)


def test_places_where_a_data_file_does_not_belong(pets: Path, tmp_path: Path, command, monkeypatch):
    monkeypatch.chdir(pets)
    code, _, err = command(".")
    assert (code, "would lie inside ." in err, "--out ../pets-256.h5" in err) == (2, True, True)
    code, _, err = command(pets, "--out", tmp_path)
    assert (code, f"such as {tmp_path / 'pets.h5'}" in err) == (2, True)
