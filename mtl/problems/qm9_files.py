"""QM9: the three CSV files that the registry's package carries, or one compact archive of the same; checked."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtl.errors import DataError
from mtl.problems.data import raw

FOLDER = "qm9"
COMPACT = ("qm9_compact.npz",)
PARTS = tuple(f"qm9_part{i}.csv" for i in (1, 2, 3))
SHA256 = {  # of the package's files, and of the archive made of them
    COMPACT[0]: "062d081ca783b24ec6edb0aefc0ad0f06a08ee56954221c8c9081aa6d586e81b",
    PARTS[0]: "19f0a5d595462d52cd82eef3370f3e9eb55a1f52cb14985657200349568deff3",
    PARTS[1]: "2bca113fdc0b28a13563c80ed9b240e934f3da6c64c64fe74ddb4f0f36036e61",
    PARTS[2]: "9c5efb5733d2af149db8d95d36ff198b4ffed12d9f7b344220a1e5877d5c6a43",
}
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
TARGETS = {  # task: column of the CSV files, in the order of the archive
    "mu": "Dipole_debye",
    "alpha": "Polarizability_bohr3",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "r2": "R2_bohr2",
    "zpve": "ZPVE_au",
    "U0": "InternalEnergy_0K_au",
    "U": "InternalEnergy_298K_au",
    "H": "Enthalphy_298K_au",
    "G": "GibbsFreeEnergy_298K_au",
    "cv": "Heatcapacity_Cv_cal_mol_K",
}
COLUMNS = (
    *("XYZ_file", "Index", "SMILES", "InChi", "N_atoms", "Stoichiometry", "Elements", "XYZ_Ang", "Mulliken_pop"),
    *("Harmonic_Freq_cmi", "RotA_GHz", "RotB_GHz", "RotC_GHz", "Dipole_debye", "Polarizability_bohr3", "HOMO_au"),
    *("LUMO_au", "HOMO_LUMO_gap_au", *list(TARGETS.values())[4:]),
)
ADVICE = "correct it or take the original files (`mtl data get qm9`)"
LIST = "a list of at least one atom, each one of " + ", ".join(ELEMENTS)
SYMBOL, NUMBER = f"'({'|'.join(ELEMENTS)})'", r"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?"
TRIPLE = rf"\[{NUMBER},{NUMBER},{NUMBER}\]"


class Molecules(NamedTuple):
    """n molecules: atoms of each (n,), charges (A,) and places in angstrom (A, 3) end to end, targets (n, 11).

    Targets are in the source's units: debye, bohr^3, hartree, bohr^2, cal / (mol K).
    """

    n_atoms: NDArray[np.int64]
    z: NDArray[np.uint8]
    pos: NDArray[np.float32]
    y: NDArray[np.float64]
    kind: str  # which files these are, in words


def locate() -> tuple[raw.Found, tuple[str, ...]]:
    """The first folder that holds the archive or all CSV files, and their names.

    Raises MissingDataError where there is none, DataError for a folder that holds some of the CSV files alone.
    """
    seen = []
    for place in raw.places(FOLDER):
        for names in (COMPACT, PARTS):
            absent = [name for name in names if not (place.path / name).is_file()]
            if not absent:
                return place, names
        if len(absent) < len(PARTS):
            rule = f"must hold {', '.join(PARTS)}, found no {', '.join(absent)}"
            raise DataError(f"{place.where}: {rule}; complete the folder or move it away")
        seen.append(place.where)
    raise raw.MissingDataError(
        f"qm9: {', '.join(PARTS)} (or {COMPACT[0]}) must lie in one of {', '.join(seen)}, found in none; "
        "run `mtl data get qm9`, or accept generated molecules with fallback='molecules'"
    )


def read() -> Molecules:
    """All molecules, in the order of their numbers, whichever layout is found.

    CSV files are parsed once and kept under a name made of their checksums. Raises MissingDataError, or DataError
    naming file, row or line, and rule: a molecule without atoms, an unknown element, a target that is no number.
    """
    place, names = locate()
    paths = [place.path / name for name in names]
    sums = [raw.sha256(path) for path in paths]
    if names == COMPACT:
        file = raw.arrays(paths[0], COMPACT[0], {"n_atoms": ("iu", 1), "Z": ("iu", 1), "pos": ("f", 2), "y": ("f", 2)})
        found = checked(file, COMPACT[0])
    else:
        name = f"qm9-{raw.fingerprint([], 'v1', *sums)[:16]}"
        found = raw.cached_arrays(name, lambda: _joined([_parse(path) for path in paths]))
    kind = "CSV files of qm9pack" if names == PARTS else "compact archive"
    if sums != [SHA256[name] for name in names]:
        kind = "files other than the pinned ones"
    return Molecules(found["n_atoms"].astype(np.int64), found["Z"], found["pos"], found["y"], kind)


def checked(file: dict[str, NDArray[Any]], where: str) -> dict[str, NDArray[Any]]:
    """`file` itself if every molecule has atoms, known elements, finite places and targets; else DataError.

    Rows count from 1, as molecules do.
    """

    def fault(row: int | None, said: str) -> DataError:
        return DataError(f"{where}{'' if row is None else f' row {row + 1}'}: {said}; {ADVICE}")

    n_atoms, z, pos, y = (file[name] for name in ("n_atoms", "Z", "pos", "y"))
    if pos.shape[1] != 3 or y.shape != (len(n_atoms), len(TARGETS)):
        raise fault(None, f"pos and y must be (atoms, 3) and ({len(n_atoms)}, 11), found {pos.shape} and {y.shape}")
    if len(empty := np.flatnonzero(n_atoms < 1)):
        raise fault(int(empty[0]), f"n_atoms must be at least 1, found {n_atoms[empty[0]]}")
    ends = np.cumsum(n_atoms.astype(np.int64))
    if not len(ends) or not ends[-1] == len(z) == len(pos):
        total = int(ends[-1]) if len(ends) else 0
        raise fault(None, f"n_atoms must count Z and pos, found {total} for {len(z)} and {len(pos)}")
    for name, good, rule in (
        ("Z", np.isin(z, list(ELEMENTS.values())), f"one of {', '.join(map(str, ELEMENTS.values()))}"),
        ("pos", np.isfinite(pos).all(1), "three finite numbers"),
    ):
        if len(bad := np.flatnonzero(~good)):
            row = int(np.searchsorted(ends, bad[0], side="right"))
            raise fault(row, f"{name} must be {rule}, found {file[name][bad[0]]}")
    if len(cells := np.argwhere(~np.isfinite(y))):
        row, column = cells[0].tolist()
        raise fault(row, f"{list(TARGETS)[column]} must be a finite number, found {y[row, column]}")
    return file


def _parse(path: Path) -> dict[str, NDArray[Any]]:
    numbers = list(TARGETS.values())
    kinds = {name: pa.float64() if name in numbers else pa.string() for name in COLUMNS} | {"N_atoms": pa.int64()}
    rules = dict.fromkeys(COLUMNS, "text") | dict.fromkeys(numbers, "a finite number")
    rules |= {"Elements": LIST, "XYZ_Ang": "a list of three finite numbers for each atom"}
    file = raw.CsvFile(
        path, path.name, kinds, rules | {"N_atoms": "the number of Elements"}, ADVICE, header=True, quotes=True
    )
    if (head := file.names()) != list(COLUMNS):
        raise file.fault(1, f"must name the columns {', '.join(COLUMNS)} in this order, found {', '.join(head)[:200]}")
    return _joined([_batch(file, line, batch) for line, batch in file.batches()])


def _batch(file: raw.CsvFile, line: int, batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
    elements, places, atoms = (batch[name] for name in ("Elements", "XYZ_Ang", "N_atoms"))
    for name, one in (("Elements", SYMBOL), ("XYZ_Ang", TRIPLE)):
        good = pc.match_substring_regex(batch[name], rf"^\[{one}(,{one})*\]$")
        file.require(good, pc.utf8_slice_codeunits(batch[name], 0, 80), name, line)
    symbols, numbers = (_split(column) for column in (elements, places))
    n_atoms = pc.list_value_length(symbols).to_numpy()
    file.require(atoms.to_numpy() == n_atoms, atoms, "N_atoms", line)
    whole = pc.list_value_length(numbers).to_numpy() == 3 * n_atoms
    file.require(whole, pc.utf8_slice_codeunits(places, 0, 80), "XYZ_Ang", line)
    y = np.stack([batch[name].to_numpy() for name in TARGETS.values()], 1)
    for name, column in zip(TARGETS.values(), y.T, strict=True):
        file.require(np.isfinite(column), batch[name], name, line)
    order = pc.index_in(symbols.flatten(), value_set=pa.array(list(ELEMENTS)))
    z = np.array(list(ELEMENTS.values()), np.uint8)[order.to_numpy()]
    pos = numbers.flatten().cast(pa.float64()).to_numpy().astype(np.float32).reshape(-1, 3)
    return {"n_atoms": n_atoms.astype(np.uint8), "Z": z, "pos": pos, "y": y}


def _split(column: pa.Array) -> pa.ListArray:
    return pc.split_pattern(pc.replace_substring_regex(column, r"[\[\]']", ""), ",")


def _joined(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
