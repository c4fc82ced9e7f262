"""Archives of picture folders."""

import io
import tarfile
import zipfile
from pathlib import Path

from tests.data_tools.conftest import encoded, picture


def zip_of(folder: Path, target: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(path, prefix + str(path.relative_to(folder)))
    return target


def tar_of(folder: Path, target: Path, prefix: str = "", mode: str = "w") -> Path:
    with tarfile.open(target, mode) as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            archive.add(path, prefix + str(path.relative_to(folder)))
    return target


def tar_of_tars(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as outer:
        for class_folder in sorted(folder.iterdir(), reverse=True):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for path in sorted(class_folder.iterdir()):
                    archive.add(path, path.name)
            info = tarfile.TarInfo(class_folder.name + ".tar")
            info.size = inner.tell()
            inner.seek(0)
            outer.addfile(info, inner)
    return target


ARCHIVES = {
    "pets.zip": zip_of,
    "stored.zip": lambda folder, target: zip_of(folder, target, method=zipfile.ZIP_STORED),
    "with-a-top-folder.zip": lambda folder, target: zip_of(folder, target, "top/"),
    "pets.tar": tar_of,
    "with-a-dot.tar": lambda folder, target: tar_of(folder, target, "./top/"),
    "of-tars.tar": tar_of_tars,
}


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    """A zip or tar, by the suffix of the path."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in members.items():
                add_to_tar(archive, name, data)
    return path


PNG = encoded(picture(1), "PNG")
