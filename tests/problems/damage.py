"""Files of a cache, and what may happen to them."""

from pathlib import Path

DAMAGES = ("cut", "flipped", "foreign")


def kept(cache: Path) -> list[Path]:
    """The files that a cache keeps, without the checksums beside them."""
    files = sorted(cache.iterdir()) if cache.exists() else []
    sums = {f"{path.name}.sha256" for path in files}
    return [path for path in files if path.name not in sums]


def spoil(path: Path, damage: str, other: bytes = b"") -> None:
    """Cut a file short, flip one bit in its middle, or put other content (a whole file of the kind) in its place."""
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": bytes(data[:1000]), "flipped": bytes(data), "foreign": other}[damage])
