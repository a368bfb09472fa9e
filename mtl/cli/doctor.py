"""`mtl doctor`: what a bug report needs."""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import mtl
from mtl.cli.arguments import cores
from mtl.files import root


def examine() -> Iterator[tuple[str, str, str]]:
    """What was looked at, what was found, and "", "note" or "WRONG", line by line: what waits for torch last."""
    yield "mtl", f"{mtl.__version__} in {Path(mtl.__file__).parent}", ""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""
    free = shutil.disk_usage(root()).free / 1e9
    yield "free disk", f"{free:.1f} GB in {root()}", "" if free > 3 else "note"
    if (given := os.environ.get("MTL_DATA")) and not Path(given).is_dir():
        yield "MTL_DATA", f"{given} is no folder", "WRONG"
    import torch

    from mtl.ledger import damage
    from mtl.problems.data.download import status

    folder = root() / "data" / "ledger"
    for path in sorted(path for path in folder.rglob("[!.]*") if path.suffix in (".jsonl", ".json")):
        if bad := damage(path):
            yield f"ledger {path.relative_to(folder)}", bad, "WRONG"
        elif path.suffix == ".jsonl":
            yield f"ledger {path.relative_to(folder)}", "readable", ""

    cuda = torch.version.cuda
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "torch build", f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'CPU only'}", ""
    yield "device", ", ".join(devices) or "CPU", "note" if cuda and not devices else ""
    yield "cores", f"{cores()} usable, {torch.get_num_threads()} torch threads", ""
    for row in status():
        yield f"data {row['name']}", row["where"] if row["found"] else row["route"], "" if row["found"] else "not found"
