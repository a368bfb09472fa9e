"""Forty binary tasks of one table: values of twelve Census-Income columns, each against all others."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mtl.errors import DataError
from mtl.models import MultiTaskModel, shared_bottom, single_task
from mtl.models.matched import matched_single_task
from mtl.problems.base import SPLITS, Batch, BinaryProblem, check_scale
from mtl.problems.census import COLUMNS, NUMBERS, read, split_rows
from mtl.problems.data import raw
from mtl.problems.data.pins import locate
from mtl.problems.kuairand import encode

# Of each column the values, at most four, that 1 to 94 % of the people have.
TARGETS: dict[str, dict[str, str]] = {
    "class_of_worker": {
        "no-worker": "Not in universe", "private": "Private", "self-employed": "Self-employed-not incorporated",
        "local-government": "Local government",
    },
    "education": {
        "high-school": "High school graduate", "child": "Children", "some-college": "Some college but no degree",
        "bachelor": "Bachelors degree(BA AB BS)",
    },
    "marital_status": {
        "never-married": "Never married", "married": "Married-civilian spouse present", "divorced": "Divorced",
        "widowed": "Widowed",
    },
    "race": {"white": "White", "black": "Black", "asian": "Asian or Pacific Islander", "other-race": "Other"},
    "hispanic_origin": {
        "not-hispanic": "All other", "mexican-american": "Mexican-American", "mexican": "Mexican (Mexicano)",
        "central-american": "Central or South American",
    },
    "sex": {"male": "Male"},
    "employment": {
        "no-schedule": "Children or Armed Forces", "full-time": "Full-time schedules",
        "no-labour-force": "Not in labor force", "part-time": "PT for non-econ reasons usually FT",
    },
    "tax_filer": {
        "nonfiler": "Nonfiler", "joint": "Joint both under 65", "single-filer": "Single", "joint-65": "Joint both 65+",
    },
    "household_summary": {
        "householder": "Householder", "child-under-18": "Child under 18 never married",
        "spouse": "Spouse of householder", "child-18": "Child 18 or older",
    },
    "citizenship": {
        "native": "Native- Born in the United States", "foreign": "Foreign born- Not a citizen of U S",
        "naturalised": "Foreign born- U S citizen by naturalization",
    },
    "parents_present": {
        "not-asked": "Not in universe", "both-parents": "Both parents present", "mother-only": "Mother only present",
    },
    "income": {"income": "50000+."},
}  # fmt: skip
TASKS = {task: (column, word) for column, words in TARGETS.items() for task, word in words.items()}
# Categories that leave less than 5 % of a task's rarer class to guess; the age, which settles "child", stays.
RESTATING = (
    *("industry_code", "occupation_code", "major_industry", "major_occupation"),
    *("household_detail", "own_country", "veteran_benefits"),
)
FIELDS = [c for c in COLUMNS if c not in (*NUMBERS, *TARGETS, *RESTATING, "instance_weight")]
ROWS = {
    "smoke": (1_500, 2_000, 2_000),
    "quick": (2_000, 3_000, 3_000),
    "study": (40_000, 10_000, 30_000),
    "paper": (None, None, None),
}
SIZES = {
    "smoke": {"embedding": 4, "width": 8, "hidden": 8},
    "quick": {"embedding": 8, "width": 16, "hidden": 16},
    "study": {"embedding": 8, "width": 16, "hidden": 16},
    "paper": {"embedding": 8, "width": 32, "hidden": 16},
}
MODELS: dict[str, Callable[..., MultiTaskModel]] = {
    "shared-bottom": shared_bottom,
    "single-task": single_task,
    "single-task-matched": matched_single_task,
}


class ManyTasks(BinaryProblem):
    """Forty binary tasks with one shared first layer; what the real and the generated rows share."""

    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes = MODELS, SIZES


class Census40(ManyTasks):
    """Forty questions about a person of Census-Income, each a value of one of twelve columns against all others.

    What it is: many real tasks of base rates 1 to 94 % on the same rows. What it is not: forty sources of labels.
    Values of one column exclude each other, columns depend on each other, and some tasks are nearly settled by the
    features left (the age settles "child"), so that means over tasks follow these few. No column of a task is a
    feature, nor are those that restate one (`RESTATING`). Rows, split and validation are those of `Census`.
    Raises DataError for missing or damaged files, or a value that no row has.
    """

    name: ClassVar[str] = "census40"

    def __init__(self, scale: str = "smoke") -> None:
        check_scale(scale, ROWS)
        table, n_train, pinned = read(locate("census").path)
        rows = split_rows(n_train, table.num_rows, ROWS[scale])
        codes, words = {}, {}
        for column in (*FIELDS, *TARGETS):
            encoded = table[column].combine_chunks()
            codes[column], words[column] = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        if absent := [(column, word) for column, word in TASKS.values() if word not in words[column]]:
            raise DataError(f"census: {absent[0][0]} must hold {absent[0][1]!r} in some row, found it in none")
        numbers = np.stack([table[column].to_numpy() for column in NUMBERS], 1).astype(np.float64)
        ids, scaled, vocabulary = encode({column: codes[column] for column in FIELDS}, numbers, rows["train"])
        each = [codes[column] == words[column].index(word) for column, word in TASKS.values()]
        targets = np.stack(each, 1).astype(np.float32)
        self.net_inputs = (vocabulary, len(NUMBERS), len(TASKS))
        used = [a[index] for index in rows.values() for a in (ids, numbers, targets)]
        source = f"UCI Census-Income (KDD), {n_train:,} + {table.num_rows - n_train:,} rows, values against all others"
        source += "" if pinned else ", files other than those of the manifest"
        splits = {split: _tensors(ids[index], scaled[index], targets[index]) for split, index in rows.items()}
        super().__init__(scale, tuple(TASKS), splits, source=source, fingerprint=raw.fingerprint(used, *FIELDS, *TASKS))


class Census40Like(ManyTasks):
    """Synthetic: forty tasks on rows that do not exist, where Census-Income is not found.

    Six hidden numbers of a person, seen through ten coarse fields and seven noisy numbers, decide each task by a
    linear score of its own with noise of its own, cut so that 2 to 90 % are positive.
    """

    name: ClassVar[str] = "census40_like"
    synthetic = True
    stands_in = "generated rows stand in for it"

    def __init__(self, scale: str = "smoke", *, stands_in_for: str | None = None) -> None:
        counts = [count or 20_000 for count in ROWS[check_scale(scale, ROWS)]]
        draw = np.random.default_rng(40)
        hidden = draw.normal(size=(sum(counts), 6))
        seen = hidden @ draw.normal(size=(6, 17)) / 2 + draw.normal(size=(sum(counts), 17))
        ids = np.digitize(seen[:, :10], np.linspace(-2, 2, 5)).astype(np.int32)
        scores = hidden @ draw.normal(size=(6, len(TASKS))) / 2
        scores += draw.normal(size=scores.shape) * np.linspace(0.1, 2, len(TASKS))
        targets = (scores > np.quantile(scores, np.linspace(0.98, 0.1, len(TASKS)), axis=0).diagonal()).astype("f4")
        ends = np.cumsum(counts)
        parts = {split: slice(end - n, end) for split, n, end in zip(SPLITS, counts, ends, strict=True)}
        self.net_inputs = ([6] * 10, 7, len(TASKS))
        splits = {split: _tensors(ids[own], seen[own, 10:].astype("f4"), targets[own]) for split, own in parts.items()}
        digest = raw.fingerprint([ids, targets], "census40-like-v1")
        about: dict[str, Any] = {"fingerprint": digest, "stands_in_for": stands_in_for}
        super().__init__(scale, tuple(f"task-{t:02d}" for t in range(40)), splits, source="generated rows", **about)


def _tensors(*arrays: NDArray[Any]) -> Batch:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
