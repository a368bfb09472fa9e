"""What tests of several rooms need."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from mtl import sources

settings.register_profile("any machine", deadline=None)  # a busy one is slow, which is no fault
settings.load_profile("any machine")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that a test may change."""
    copy = tmp_path / "mtl"
    shutil.copytree(sources.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "PACKAGE", copy)
    return copy


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder without any data."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setenv("MTL_ROOT", str(root))
    monkeypatch.delenv("MTL_DATA", raising=False)
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A class that an example makes is its reader's, not one of this package."""
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.dtest is not None:
            item.dtest.globs["__name__"] = "example"
