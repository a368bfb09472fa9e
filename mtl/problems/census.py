"""UCI Census-Income (KDD): two or three binary tasks on one table, the benchmark of MMoE and PLE."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.models import PLE, MMoE, MultiTaskModel, shared_bottom, single_task
from mtl.problems.base import BinaryProblem, check_scale
from mtl.problems.data import raw
from mtl.problems.data.pins import entry, locate

# in the order of the files; the names follow the data set's own documentation
COLUMNS = (
    *("age", "class_of_worker", "industry_code", "occupation_code", "education", "wage_per_hour", "enrolled"),
    *("marital_status", "major_industry", "major_occupation", "race", "hispanic_origin", "sex", "union_member"),
    *("unemployment_reason", "employment", "capital_gains", "capital_losses", "dividends", "tax_filer"),
    *("previous_region", "previous_state", "household_detail", "household_summary", "instance_weight"),
    *("migration_msa", "migration_region", "move_within_region", "same_house", "previous_sunbelt"),
    *("employer_persons", "parents_present", "father_country", "mother_country", "own_country", "citizenship"),
    *("self_employed", "veteran_questionnaire", "veteran_benefits", "weeks_worked", "year", "income"),
)
# numerical features and the range that each must keep to; amounts in dollars (wages in cents per hour)
NUMBERS = {
    "age": (0, 90),
    "wage_per_hour": (0, 9999),
    "capital_gains": (0, 99999),
    "capital_losses": (0, 9999),
    "dividends": (0, 99999),
    "employer_persons": (0, 6),
    "weeks_worked": (0, 52),
}
AMOUNTS = ("wage_per_hour", "capital_gains", "capital_losses", "dividends")
COLLEGE = (
    "Some college but no degree",
    "Associates degree-occup /vocational",
    "Associates degree-academic program",
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "Doctorate degree(PhD EdD)",
)
EDUCATION = (
    *("Less than 1st grade", "1st 2nd 3rd or 4th grade", "5th or 6th grade", "7th and 8th grade", "9th grade"),
    *("10th grade", "11th grade", "12th grade no diploma", "High school graduate", "Children", *COLLEGE),
)
MARITAL = (
    *("Never married", "Married-civilian spouse present", "Married-A F spouse present"),
    *("Married-spouse absent", "Divorced", "Separated", "Widowed"),
)
INCOME = ("- 50000.", "50000+.")


class Target(NamedTuple):
    """A binary task: the column that it is read from (no feature then), its valid values, the positive ones."""

    column: str
    allowed: Sequence[str]
    positive: Sequence[str]


TARGETS = {
    "income": Target("income", INCOME, INCOME[1:]),
    "never-married": Target("marital_status", MARITAL, MARITAL[:1]),
    "college": Target("education", EDUCATION, COLLEGE),
}
# columns that nearly state the marital status ("Child <18 never marr ...", "Spouse of householder", "Joint ...")
REVEALING = ("household_detail", "household_summary", "tax_filer")
ALL = (None, None, None)
ROWS = {"smoke": (2_000, 500, 1_000), "quick": (40_000, 10_000, 20_000), "study": ALL, "paper": ALL}
SIZES = {
    "smoke": {"embedding": 4, "width": 16, "hidden": 16},
    "quick": {"embedding": 8, "width": 32, "hidden": 32},
    "study": {"embedding": 8, "width": 32, "hidden": 32},
    "paper": {"embedding": 16, "width": 128, "hidden": 64},
}
MODELS: dict[str, Callable[..., MultiTaskModel]] = {
    "mmoe": MMoE,
    "ple": PLE,
    "shared-bottom": shared_bottom,
    "single-task": single_task,
}


class Census(BinaryProblem):
    """Income above 50,000 dollars, never married, and (tasks=3) at least some college; 199,523 + 99,762 rows.

    Each task's own column is no feature, nor is the survey's instance weight. Columns that nearly state the
    marital status stay in, as in the MMoE paper, unless revealing="drop". Vocabulary (with an unknown id 0),
    mean and standard deviation come from the training rows of the scale alone; amounts enter as log(1 + x).
    Validation: 10 % of the training file by a fixed permutation, whatever the run's seed.
    Raises DataError for missing or damaged files, ValueError for an unknown option.
    """

    name: ClassVar[str] = "census"
    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes = MODELS, SIZES

    def __init__(self, scale: str = "smoke", *, tasks: int = 2, revealing: str = "keep") -> None:
        check_scale(scale, ROWS)
        if tasks not in (2, 3):
            raise ValueError(f"tasks must be 2 (income, never-married) or 3 (and college), found {tasks!r}")
        if revealing not in ("keep", "drop"):
            raise ValueError(f"revealing must be 'keep' or 'drop', found {revealing!r}")
        names = tuple(TARGETS)[:tasks]
        self.removed = tuple(TARGETS[task].column for task in names) + (REVEALING if revealing == "drop" else ())
        table, n_train, pinned = read(locate(self.name).path)
        rows = split_rows(n_train, table.num_rows, ROWS[scale])
        self.fields = [c for c in COLUMNS if c not in (*NUMBERS, *self.removed, "instance_weight", "income")]
        codes = {column: _codes(table[column], rows["train"]) for column in self.fields}
        self.vocabulary = [size for _, size in codes.values()]
        self.net_inputs = (self.vocabulary, len(NUMBERS), tasks)
        ids = np.stack([code for code, _ in codes.values()], 1)
        numbers = np.stack([table[column].to_numpy() for column in NUMBERS], 1)
        targets = np.stack([_labels(table, TARGETS[task]) for task in names], 1)
        scaled = _standardise(numbers, rows["train"])
        splits = {split: tuple(_take(a, index) for a in (ids, scaled, targets)) for split, index in rows.items()}
        used = [a[index] for index in rows.values() for a in (ids, numbers, targets)]
        super().__init__(
            scale,
            names,
            splits,
            source=f"UCI Census-Income (KDD), {n_train:,} + {table.num_rows - n_train:,} rows"
            + ("" if pinned else ", files other than those of the manifest"),
            fingerprint=raw.fingerprint(used, *self.fields, *NUMBERS, *names),
            options={"tasks": tasks, "revealing": revealing},
        )

    def describe(self) -> str:
        return (
            f"{super().describe()} Features: {len(self.fields)} categorical, {len(NUMBERS)} numerical; "
            f"removed: {', '.join(self.removed)} (labels or revealing) and instance_weight."
        )


def read(folder: Path) -> tuple[pa.Table, int, bool]:
    """Both files as one table, training rows first, their number, and whether the checksums are the pinned ones.

    Parsed once and kept as Parquet under a name made of the files' checksums (`raw.cached`). Raises DataError for a
    damaged file, a wrong column count or a bad cell.
    """
    files = entry(Census.name).files
    paths = [folder / file.name for file in files]
    sums = tuple(raw.sha256(path) for path in paths)

    def parse(part: Path) -> None:
        parts = [_parse(path) for path in paths]
        table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
        pq.write_table(table.replace_schema_metadata({b"train": str(parts[0].num_rows)}), part, compression="zstd")

    table = pq.read_table(
        raw.cached(f"census-{raw.fingerprint([], 'v1', *sums)[:16]}.parquet", parse), use_threads=False
    )
    return table, int(table.schema.metadata[b"train"]), sums == tuple(file.sha256 for file in files)


def split_rows(n_train: int, n: int, wanted: Sequence[int | None]) -> dict[str, NDArray[np.int64]]:
    """Row numbers per split: 10 % of the training file for validation, then the first so many of each."""
    train, test = raw.permutation(n_train, 1), n_train + raw.permutation(n - n_train, 2)
    held = n_train // 10
    whole = {"train": train[held:], "validation": train[:held], "test": test}
    return {split: index[:count] for (split, index), count in zip(whole.items(), wanted, strict=True)}


def _parse(path: Path) -> pa.Table:
    ranges = {**NUMBERS, "instance_weight": (0, 1e6)}  # the weight is checked, not kept: it is no feature
    allowed = {target.column: target.allowed for target in TARGETS.values()}
    rules = {column: f"a number in [{low:g}, {high:g}]" for column, (low, high) in ranges.items()}
    rules |= {column: f"one of {', '.join(map(repr, words))}" for column, words in allowed.items()}
    kinds = {column: pa.float64() if column in ranges else pa.string() for column in COLUMNS}
    advice = f"correct the line or replace the file by the original (`mtl data get {Census.name}`)"
    file = raw.CsvFile(path, path.name, kinds, defaultdict(lambda: "text", rules), advice)
    table = {}
    for column, cells in zip(COLUMNS, file.read().itercolumns(), strict=True):
        if column in ranges:
            low, high = ranges[column]
            file.require(pc.and_(pc.greater_equal(cells, low), pc.less_equal(cells, high)), cells, column)
        else:
            cells = pc.utf8_trim_whitespace(cells)
            if column in allowed:
                file.require(pc.is_in(cells, value_set=pa.array(allowed[column])), cells, column)
        if column in NUMBERS:
            table[column] = cells.cast(pa.float32())
        elif column != "instance_weight":
            table[column] = cells.dictionary_encode()
    return pa.table(table)


def _codes(column: Any, train: NDArray[np.int64]) -> tuple[NDArray[np.int32], int]:
    """Ids 1, 2, ... for the values seen in the training rows, in alphabetical order; 0 for all others."""
    encoded = column.combine_chunks()
    words, index = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    seen = sorted(np.unique(index[train]).tolist(), key=words.__getitem__)
    ids = np.zeros(len(words), np.int32)
    ids[seen] = np.arange(1, len(seen) + 1)
    return ids[index], len(seen) + 1


def _labels(table: pa.Table, target: Target) -> NDArray[np.float32]:
    encoded = table[target.column].combine_chunks()
    positive = np.array([word in target.positive for word in encoded.dictionary.to_pylist()], np.float32)
    return np.asarray(positive[encoded.indices.to_numpy()])


def _standardise(numbers: NDArray[np.float32], train: NDArray[np.int64]) -> NDArray[np.float32]:
    amounts = [column in AMOUNTS for column in NUMBERS]
    values = np.where(amounts, np.log1p(numbers.astype(np.float64)), numbers)
    mean, spread = values[train].mean(0), values[train].std(0)
    return np.asarray((values - mean) / np.where(spread > 0, spread, 1), np.float32)


def _take(array: NDArray[Any], index: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array[index]))
