"""What tests of runs need."""

from pathlib import Path

import pytest

from mtl.ledger import Ledger


@pytest.fixture(autouse=True)
def own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints and ledgers of a test lie in its own folder; it joins no cluster that this machine knows of."""
    monkeypatch.setenv("MTL_ROOT", str(tmp_path))
    for name in ("MTL_LEDGER", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "book")
