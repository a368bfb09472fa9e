"""KuaiRand-Pure: the official CSVs, or the slice of 25 April to 8 May 2022; checked, and what was odd is counted."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtl.errors import DataError
from mtl.problems.data import raw

# file names of the two layouts: log, users, videos
OFFICIAL = ("log_standard_4_22_to_5_08_pure.csv", "user_features_pure.csv", "video_features_basic_pure.csv")
SLICE = (
    "kuairand_pure_log_0425_0508.parquet",
    "kuairand_user_features_pure.csv.gz",
    "kuairand_video_features_basic_pure.csv.gz",
)
LAYOUTS = {"KuaiRand-Pure/data": OFFICIAL, "kuairand_pure": SLICE}
SHA256 = {  # of the slice; the archive's own checksum stands on its Zenodo page
    SLICE[0]: "07891a4e8c5ca357376d1131f27fbb16f832222fcadd8bdb38c62d35e46e1132",
    SLICE[1]: "9d8ccbc1c8b8bd5ddd08fcaaf005f299652c54a7c7bf176ad13483952f697109",
    SLICE[2]: "a6ccc80ed76d598de3d8785735882a5ee5066a8f91dfaffc6b0cf5c9e3f11b03",
}
ROUTE = "unpack KuaiRand-Pure.tar.gz of zenodo.org/records/10439422 in data/raw"
LICENCE = "CC BY-SA 4.0 (Gao et al., CIKM 2022)"
FIRST_DAY = 20220425  # the official file begins on 22 April, the slice here: both give the same rows

HIGH = 1 << 62
LOG = {  # columns of the log in the files' order, and the range that each must keep to
    **dict.fromkeys(("user_id", "video_id"), (0, HIGH)),
    "date": (20220408, 20220508),
    "hourmin": (0, 2359),
    "time_ms": (1, HIGH),
    **dict.fromkeys(("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"), (0, 1)),
    **dict.fromkeys(("play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time"), (0, HIGH)),
    "is_profile_enter": (0, 1),
    "is_rand": (0, 0),
    "tab": (0, 14),
}
ONE_HOT = tuple(f"onehot_feat{i}" for i in range(18))
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
USERS = (
    *("user_id", "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"),
    *(name for number in USER_NUMBERS for name in (number, f"{number}_range")),
    *ONE_HOT,
)
VIDEO_NUMBERS = ("server_width", "server_height")
VIDEOS = (
    *("video_id", "author_id", "video_type", "upload_dt", "upload_type", "visible_status", "video_duration"),
    *(*VIDEO_NUMBERS, "music_id", "music_type", "tag"),
)
Columns = dict[str, NDArray[np.int64]]


class Files(NamedTuple):
    """Log (in order of time), users, videos, what was counted while reading, which files these are in words."""

    log: Columns
    users: pa.Table
    videos: pa.Table
    counts: dict[str, int]
    kind: str


def locate() -> tuple[raw.Found, tuple[str, ...]]:
    """The first folder that holds one of the two layouts, and its files' names.

    Raises MissingDataError where there is none, DataError for a folder that lacks one of its three files.
    """
    seen = []
    for official, part in zip(*map(raw.places, LAYOUTS), strict=True):
        for place, names in ((official, OFFICIAL), (part, SLICE)):
            absent = [name for name in names if not (place.path / name).is_file()]
            if not absent:
                return place, names
            if len(absent) < len(names):
                raise DataError(f"{place.where}: must hold {', '.join(names)}, found no {absent[0]}; {ROUTE}")
            seen.append(place.where)
    raise raw.MissingDataError(
        f"kuairand: {', '.join(OFFICIAL)} must lie in one of {', '.join(seen)}, found in none; "
        f"{ROUTE}, or accept simulated rows with fallback='shortvideo'"
    )


def status() -> tuple[str, str, bool, str, int, str, str]:
    """Its line in `mtl data list`: name, title, whether and where it was found, size, licence, route."""
    try:
        place, names = locate()
    except DataError as error:
        where, size = ("not found" if isinstance(error, raw.MissingDataError) else str(error)), 0
    else:
        where, size = place.where, sum((place.path / name).stat().st_size for name in names)
    return "kuairand", "KuaiRand-Pure, a short-video log", size > 0, where, size, LICENCE, f"by hand: {ROUTE}"


def read() -> Files:
    """The three files, whichever layout is found; rows before 25 April are left out, repeated ones too.

    A row repeats another if user, video and time are the same; the first in the file stays. Raises DataError naming
    file, line (a Parquet file's rows are counted like lines) and rule.
    """
    place, names = locate()
    paths = [place.path / name for name in names]
    users = _table(paths[1], USERS, USER_NUMBERS)
    videos = _table(paths[2], VIDEOS, VIDEO_NUMBERS)
    file, table = _log(paths[0])
    log: Columns = {}
    for name, (low, high) in LOG.items():
        cells = table[name].combine_chunks()
        column = np.asarray(cells.fill_null(low - 1).to_numpy())
        file.require((column >= low) & (column <= high), cells, name)
        log[name] = column
    for name, known in (("user_id", users), ("video_id", videos)):
        there = np.isin(log[name], known[name].to_numpy())
        if not there.all():
            row = int(np.flatnonzero(~there)[0])
            rule = f"{name} must be one of {paths[1 if name == 'user_id' else 2].name}, found {log[name][row]}"
            raise file.fault(row + 1 + file.header, rule)
    kept, counts = _in_time(log)
    kind = "official CSVs" if names == OFFICIAL else "slice of the project"
    if names == SLICE and [raw.sha256(path) for path in paths] != list(SHA256.values()):
        kind = "files other than the pinned ones"
    return Files({name: column[kept] for name, column in log.items()}, users, videos, counts, kind)


def _in_time(log: Columns) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Rows to keep, in order of time, and what was counted."""
    late = np.flatnonzero(log["date"] >= FIRST_DAY)
    keys = np.stack([log[name][late] for name in ("time_ms", "user_id", "video_id")])
    order = np.lexsort(keys[::-1])  # stable: rows that repeat stay in the order of the file
    repeats = np.append(False, (np.diff(keys[:, order]) == 0).all(0))
    kept = late[order[~repeats]]
    play, duration = (log[name][kept] for name in ("play_time_ms", "duration_ms"))
    return kept, {
        "repeated rows dropped": int(repeats.sum()),
        "rows before 25 April left out": len(log["date"]) - len(late),
        "rows out of order in the file": int((np.diff(keys[0]) < 0).sum()),
        "rows of unknown duration (no completion label)": int((duration == 0).sum()),
        "rows played longer than the video (completion 1)": int(((play > duration) & (duration > 0)).sum()),
    }


def _log(path: Path) -> tuple[raw.CsvFile, pa.Table]:
    rules = {name: f"a whole number in [{low}, {high}]" for name, (low, high) in LOG.items()}
    rules |= {name: "a whole number, at least 0" for name, (low, high) in LOG.items() if (low, high) == (0, HIGH)}
    rules |= {"is_rand": "0 (random exposures have a file of their own)"}
    file = _file(path, dict.fromkeys(LOG, pa.int64()), rules)
    if path.suffix != ".parquet":
        return file, file.read()
    try:
        table = pq.read_table(path, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise file.fault(None, f"must be a whole Parquet file, found {path.stat().st_size} bytes ({error})") from error
    if missing := [name for name in LOG if name not in table.column_names]:
        raise file.fault(None, f"must have the column {missing[0]}, found {', '.join(table.column_names)}")
    if odd := [name for name in LOG if not pa.types.is_integer(table.schema.field(name).type)]:
        raise file.fault(None, f"{odd[0]} must be {rules[odd[0]]}, found a column of {table.schema.field(odd[0]).type}")
    return file, table


def _table(path: Path, columns: tuple[str, ...], numbers: tuple[str, ...]) -> pa.Table:
    """A table of features: an id that no line repeats, numbers at least 0, all else text (empty: unknown)."""
    kinds: dict[str, pa.DataType] = dict.fromkeys(columns, pa.string())
    kinds |= dict.fromkeys(numbers, pa.float64()) | {columns[0]: pa.int64()}
    rules = dict.fromkeys(columns, "text") | dict.fromkeys(numbers, "a number, at least 0")
    file = _file(path, kinds, rules | {columns[0]: "a whole number that stands once"})
    table = file.read()
    for name in numbers:
        file.require(table[name].to_numpy() >= 0, table[name], name)
    ids = table[columns[0]].to_numpy()
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    file.require(first, table[columns[0]], columns[0])
    return table


def _file(path: Path, kinds: Mapping[str, pa.DataType], rules: Mapping[str, str]) -> raw.CsvFile:
    parquet = path.suffix == ".parquet"
    file = raw.CsvFile(path, path.name, kinds, rules, "take the original file", header=not parquet, quotes=True)
    if not parquet and (found := file.names()) != list(kinds):
        said = f"must name the columns {', '.join(kinds)} in this order, found {', '.join(found)[:200]}"
        raise file.fault(1, said)
    return file
