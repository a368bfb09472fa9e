"""The row of a configuration: from the ledger, else made now; for studies whose runs are not `Cell`s."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from mtl.ledger import Ledger, Row, key, provenance


def once(
    book: Ledger, config: Mapping[str, Any], fingerprint: str, make: Callable[[], Mapping[str, Any]],
    modules: Sequence[str], *, source: str, device: torch.device | str = "cpu", **facts: Any,
) -> Row:  # fmt: skip
    """The row with this configuration and fingerprint; where the ledger has none, or one that older sources made here,
    `make` gives its metrics and it is appended. Metrics may say that they are not all `finite`, and `facts` that the
    data are synthetic or embedded."""
    name = key(config, fingerprint)
    if (found := book.find(name, older=False)) is not None:
        return found
    start = time.perf_counter()
    metrics = make()
    row: Any = {
        "key": name, "config": config, "fingerprint": fingerprint,
        "status": "ok" if metrics.get("finite", True) else "non-finite", "metrics": metrics,
        "wall_s": round(time.perf_counter() - start, 3), "provenance": provenance(device, modules),
        "source": source, "embedded_default": False, "synthetic": False,
    }  # fmt: skip
    book.append(row := row | facts)
    return cast(Row, row)
