"""What each rank of a gloo group found, for tests of data-parallel steps."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def told(worker: Callable[[int, str], None], n: int) -> list[dict[str, Any]]:
    """Start `n` processes of `worker(rank, folder)`, which save what they found as `<rank>.pt`; skip without gloo."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(folder,), nprocs=n)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(n)]
