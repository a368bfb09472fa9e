"""`mtl run`: the runs of one experiment, resumable at any moment; what a table of scale study or gpu is made by."""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.cli import arguments


def run(
    name: str, scale: str, options: Mapping[str, Any], seeds: str = "", methods: Sequence[str] = (),
    *, ledger: Path | None = None, device: str = "cpu", deadline: float | None = None, **how: Any,
) -> int:  # fmt: skip
    """Make the rows that are missing; exit code 0: all rows are there, 3: the deadline left some.

    `options` are the experiment's own, `how` goes to the engine. Raises ValueError for what an experiment does not
    have and RunError where runs failed, after all others are done and written.
    """
    chosen: dict[str, Any] = {"seeds": arguments.seeds(seeds), "methods": list(methods) or None}
    how |= {"device": arguments.device(device), "deadline": arguments.deadline(deadline)}
    if taken := [key for key in options if key in {*chosen, *how, "ledger", "scale"}]:
        raise ValueError(f"-p {taken[0]}: it has an option of its own, --{taken[0].replace('_', '-')}")
    from mtl.errors import RunError
    from mtl.experiments.registry import EXPERIMENTS
    from mtl.runs.engines import plain_progress

    if name not in EXPERIMENTS:
        hint = arguments.nearest(name, EXPERIMENTS)
        raise ValueError(f"experiment: one of {', '.join(EXPERIMENTS)}, found {name!r}{hint}")
    if ledger:
        os.environ["MTL_LEDGER"] = str(ledger.resolve())
    events: Counter[str] = Counter()

    def progress(event: Any) -> None:
        events[event["event"]] += 1
        plain_progress(event)

    started = time.monotonic()
    try:
        rows = EXPERIMENTS[name].run(scale, **chosen, **options, **how, progress=progress)
    except RunError:
        if not events["left"] or events["failed"]:
            raise
        rows = []  # what chooses between the rows that were left cannot do so yet
    broken = sum(row["status"] != "ok" for row in rows)
    seconds = time.monotonic() - started
    said = f"{len(rows)} rows, {broken} without a result, {events['left']} left by the deadline, {seconds:.0f} s"
    print(said, file=sys.stderr)
    return 3 if events["left"] else 0
