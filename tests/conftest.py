"""Data that several test files need."""

from pathlib import Path

import pytest
import torch

from small import write_class_folders


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory) -> Path:
    """37 images of three classes, 32 px."""
    return write_class_folders(tmp_path_factory.mktemp("images") / "shapes", {"a": 11, "b": 17, "c": 9})


@pytest.fixture(scope="session")
def data_file(class_folders, tmp_path_factory) -> Path:
    """The same as a data file."""
    from data_tools.cli import main

    path = tmp_path_factory.mktemp("data") / "shapes-32.h5"
    assert main([str(class_folders), "--size", "32", "--out", str(path), "--workers", "1", "--no-report"]) == 0
    return path
