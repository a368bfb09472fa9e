"""A generated official CSV of AliExpress to Parquet: `python -m benchmarks.convert [--rows 20000000]`.

CPU seconds per row and peak memory of a process of its own, one thread, then the rows streamed back. Files of some 0.6
GiB per million rows are written to a temporary folder ($TMPDIR) and removed.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import torch

from mtl.files import atomic, root
from mtl.ledger import provenance
from mtl.problems import aliexpress_like
from mtl.problems.aliexpress_files import GROUP, Encoder, convert


def conversion(rows: int) -> dict[str, float]:
    """Convert a generated file in a fresh process, then stream it: rows per CPU second, peak resident memory."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "AliExpress_NL" / "train.csv"
        block = min(rows, 100_000)
        aliexpress_like.write_files(path.parent, block, 1)
        head, *lines = path.read_text().splitlines()
        tails = [line.split(",", 1) for line in lines]
        with path.open("w", encoding="utf-8") as file:
            file.write(head + "\n")
            for start in range(0, rows, block):
                file.writelines(f"{start + int(search)},{rest}\n" for search, rest in tails[: rows - start])
        size = path.stat().st_size / 2**30
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return {"CSV, GiB": size} | pool.apply(_convert, (str(path), scratch))


def _convert(path: str, cache: str) -> dict[str, float]:
    os.environ["MTL_CACHE"] = cache
    torch.set_num_threads(1)
    start = time.process_time()
    done = convert(Path(path), split=True)
    converted = time.process_time()
    encoder, rows = Encoder(done.stats), 0
    for ids, numbers, _ in done.blocks(held=False):
        rows += len(encoder(ids, numbers)[0])
    return {
        "conversion, rows/s": done.rows / (converted - start),
        "streaming, rows/s": rows / (time.process_time() - converted),
        "conversion, peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "row group, MiB": GROUP * 4 * 81 / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    report = {"rows": rows, "measured": conversion(rows), "provenance": provenance("cpu")}
    with atomic(root() / "benchmarks" / "results" / "convert_cpu.json") as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["measured"], indent=1))


if __name__ == "__main__":
    main()
