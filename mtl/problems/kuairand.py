"""KuaiRand-Pure, a real short-video log: click, completion and watch time, the tasks of EMTL's Table 3."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mtl.models import MMoE, MultiTaskModel, dcn_click, shared_bottom, single_task
from mtl.problems import metrics
from mtl.problems.base import SPLITS, Batch, BinaryProblem, Metric, Problem, check_scale
from mtl.problems.data import raw
from mtl.problems.kuairand_files import ONE_HOT, USER_NUMBERS, VIDEO_NUMBERS, Columns, Files, read

TASKS = ("click", "completion", "watch")
TARGETS = ("natural", "standardised")
TABS = (0, 1)  # two columns, where a click is a click; one column, where it is a threshold on play time
LAST_DAY = {"train": 20220503, "validation": 20220504, "test": 20220508}
KNOWN = ("user_id", "video_id", "tab", "hourmin", "duration_ms")  # of the log, before the impression
USER_FIELDS = (
    *("user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"),
    *(f"{number}_range" for number in USER_NUMBERS),
    *ONE_HOT,
)
VIDEO_FIELDS = ("author_id", "video_type", "upload_dt", "upload_type", "music_id", "music_type", "tag")
ALL = (None, None, None)
ROWS = {"smoke": (2_000, 500, 1_000), "quick": (40_000, 10_000, 20_000), "study": ALL, "paper": ALL}
SIZES = {
    "smoke": {"embedding": 4, "width": 16, "hidden": 16, "experts": 4},
    **{scale: {"embedding": 8, "width": 32, "hidden": 32, "experts": 4} for scale in ("quick", "study", "paper")},
}
MODELS: dict[str, Callable[..., MultiTaskModel]] = {
    "mmoe": MMoE,
    "shared-bottom": shared_bottom,
    "dcn": dcn_click,
    "single-task": single_task,
}


class WatchLog(Problem):
    """Click (log-loss), completion and watch time (squared error); what the real and the simulated log share.

    Targets are columns click, completion in [0, 1] (NaN where the duration is unknown: no label), watch in seconds,
    and the tab, by which click's AUC is given once more. Nets give the two numbers in standard deviations of the
    training rows from their mean. L_t = s_t^2 mean((yhat - z)^2) with targets="natural": squared error in the target's
    own unit, seconds^2 for watch; targets="standardised" leaves s_t^2 away. Scores are AUC and R^2.
    """

    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    builders, net_sizes = MODELS, SIZES

    def __init__(
        self, scale: str, splits: Mapping[str, Batch], vocabulary: Sequence[int], *, targets: str, **about: Any
    ) -> None:
        if targets not in TARGETS:
            raise ValueError(f"targets must be one of {', '.join(TARGETS)}, found {targets!r}")
        numbers = splits["train"][-1][:, 1:3].double().numpy()
        self.mean, self.spread = np.nanmean(numbers, 0).tolist(), np.nanstd(numbers, 0).tolist()
        self.factors = [s**2 if targets == "natural" else 1.0 for s in self.spread]
        self.cap = float(np.quantile(numbers[:, 1], 0.995))  # of watch, for the metric that outliers do not rule
        self.tabs = [tab for tab in TABS if all(_both(y[y[:, 3] == tab, 0]) for *_, y in splits.values())]
        self.net_inputs = (vocabulary, splits["train"][1].shape[1], len(TASKS))
        super().__init__(scale, TASKS, splits, options={"targets": targets}, **about)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        tabs = [(f"auc-tab-{tab}", "", True) for tab in self.tabs]
        click = [("auc", "", True), *tabs, ("log-loss", "nat", False)]
        numbers = [("mse", "^2", False), ("mae", "", False), ("r2", "", True)]
        found = [Metric(name, "click", unit, up) for name, unit, up in click]
        found += [Metric(name, "completion", "", up) for name, _, up in numbers]
        found += [Metric(name, "watch", "" if name == "r2" else f"s{unit}", up) for name, unit, up in numbers]
        return (*found, Metric("clipped-mse", "watch", "s^2", False))

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        losses = [F.binary_cross_entropy_with_logits(outputs[0], targets[:, 0])]
        for t, (mean, spread, factor) in enumerate(zip(self.mean, self.spread, self.factors, strict=True), 1):
            known = targets[:, t].isfinite()
            error = (outputs[t] - (targets[:, t].nan_to_num() - mean) / spread).square() * known
            losses.append(factor * error.sum() / known.sum().clamp(min=1))
        return tuple(losses)

    def scores(self, outputs: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        click, tab = targets[:, 0], targets[:, 3]
        values = {"click/auc": metrics.auc(outputs[0], click), "click/log-loss": metrics.log_loss(outputs[0], click)}
        for own in self.tabs:
            values[f"click/auc-tab-{own}"] = metrics.auc(outputs[0][tab == own], click[tab == own])
        values["click/score"] = values["click/auc"]
        for t, task in enumerate(TASKS[1:], 1):
            known = targets[:, t].isfinite()
            label = targets[known, t].double()
            guess = outputs[t][known].double() * self.spread[t - 1] + self.mean[t - 1]
            error = (guess - label).square()
            values[f"{task}/mse"], values[f"{task}/mae"] = error.mean(), (guess - label).abs().mean()
            values[f"{task}/r2"] = 1 - error.sum() / (label - label.mean()).square().sum()
            values[f"{task}/score"] = values[f"{task}/r2"]
        values["watch/clipped-mse"] = (guess.clamp(max=self.cap) - label.clamp(max=self.cap)).square().mean()
        return values

    def watch(self, outputs: Sequence[Tensor]) -> Tensor:
        """Predicted watch times in seconds (B,)."""
        return outputs[2].double() * self.spread[1] + self.mean[1]

    def constants(self) -> list[Tensor]:
        rate = self.data("train")[-1][:, 0].mean()
        return [torch.logit(rate, eps=1e-6), torch.zeros(()), torch.zeros(())]


class Encoded(NamedTuple):
    """Splits as tensors, ids per field, a hash of what was used, where it came from, what was counted."""

    splits: dict[str, Batch]
    vocabulary: list[int]
    fingerprint: str
    source: str
    said: str


class KuaiRand(WatchLog):
    """The standard log of 25 April to 8 May 2022, split by day: train to 3 May, validation 4 May, test from 5 May.

    `is_click` is a click in tab 0 (two columns) alone; in tab 1 (one column) it says that more than 7 s were watched.
    The tab is a feature. All features are known before the impression (`KNOWN`, and the users' and videos' own tables);
    those of the archive that count the whole period are left out. `is_rand` is 0 in every row: no off-policy
    estimate is possible from this log. Smaller scales take a fixed sample of each period.
    Raises MissingDataError, DataError with file and line, ValueError for an unknown option.
    """

    name: ClassVar[str] = "kuairand"

    def __init__(self, scale: str = "smoke", *, targets: str = "natural") -> None:
        data = _encoded(check_scale(scale, ROWS))
        self.said = data.said
        super().__init__(
            scale, data.splits, data.vocabulary, targets=targets, source=data.source, fingerprint=data.fingerprint
        )

    def describe(self) -> str:
        return f"{super().describe()} {self.said}"

    def counts(self, split: str = "test") -> dict[str, dict[str, float]]:
        """Click's AUC by counting in the training rows, no net: all rows and each tab ("click/auc", "click/auc-tab-0").

        A rate is (clicks + 20 r) / (rows + 20), r the rate of all rows. These see inputs: references, not the gate.
        """
        (ids, _, y), (own, _, labels) = self.data("train"), self.data(split)
        overall = y[:, 0].double().mean()
        rates = []
        for field in (FIELDS.index("tab"), FIELDS.index("user_id")):
            place, size = ids[:, field].long(), self.net_inputs[0][field]
            clicks = torch.bincount(place, y[:, 0].double(), minlength=size)
            rates.append(((clicks + 20 * overall) / (torch.bincount(place, minlength=size) + 20))[own[:, field].long()])
        rows = {"tab's rate": rates[0], "user's rate": rates[1], "user's rate + tab's rate": rates[0] + rates[1]}
        parts = {"click/auc": labels[:, 3] >= 0} | {f"click/auc-tab-{t}": labels[:, 3] == t for t in self.tabs}
        return {
            name: {key: metrics.auc(rate[kept], labels[kept, 0]).item() for key, kept in parts.items()}
            for name, rate in rows.items()
        }


class KuaiRandClick(BinaryProblem):
    """Two binary tasks for the sentences of EMTL's Table 1: click where it is one (tab 0), and long view (all rows).

    Rows, split and features of `KuaiRand`; outside of tab 0 a row has no click label (NaN).
    """

    name: ClassVar[str] = "kuairand_click"
    models: ClassVar[tuple[str, ...]] = ("mmoe", "shared-bottom", "single-task")
    builders, net_sizes = MODELS, SIZES

    def __init__(self, scale: str = "smoke") -> None:
        data = _encoded(check_scale(scale, ROWS))
        splits = {}
        for split, (*inputs, y) in data.splits.items():
            splits[split] = (*inputs, torch.stack([y[:, 0].where(y[:, 3] == 0, torch.nan), y[:, 4]], 1))
        self.net_inputs = (data.vocabulary, splits["train"][1].shape[1], 2)
        self.said = data.said
        source, fingerprint = data.source, raw.fingerprint([], "click", data.fingerprint)
        super().__init__(scale, ("click", "long-view"), splits, source=source, fingerprint=fingerprint)

    def task_losses(self, outputs: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
        losses = []
        for logit, label in zip(outputs, targets.unbind(1), strict=True):
            known = label.isfinite()
            each = F.binary_cross_entropy_with_logits(logit, label.nan_to_num(), reduction="none") * known
            losses.append(each.sum() / known.sum().clamp(min=1))
        return tuple(losses)

    def constants(self) -> list[Tensor]:
        return list(torch.logit(self.data("train")[-1].nanmean(0), eps=1e-6).unbind())

    def scores(self, outputs: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        values = {}
        for task, logit, label in zip(self.tasks, outputs, targets.unbind(1), strict=True):
            known = label.isfinite()
            values[f"{task}/auc"] = values[f"{task}/score"] = metrics.auc(logit[known], label[known])
            values[f"{task}/log-loss"] = metrics.log_loss(logit[known], label[known])
            values[f"{task}/accuracy"] = metrics.accuracy(logit[known], label[known])
        return values

    def describe(self) -> str:
        rates = self.data("train")[-1].nanmean(0).tolist()
        shown = ", ".join(f"{task} {100 * rate:.1f} %" for task, rate in zip(self.tasks, rates, strict=True))
        return f"{Problem.describe(self)} Positives among the labelled training rows: {shown}. {self.said}"


FIELDS = ("user_id", "video_id", "tab", "hour", *USER_FIELDS, *VIDEO_FIELDS)


def fields(known: Columns, files: Files) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    """Values (n,) of the 37 categorical fields and the 7 numbers (n, 7), from the columns `KNOWN` of the log alone."""
    found: dict[str, NDArray[Any]] = {name: known[name] for name in ("user_id", "video_id", "tab")}
    found["hour"] = known["hourmin"] // 100
    numbers = [known["duration_ms"] / 1000]
    for table, names, own in (
        (files.users, USER_FIELDS, USER_NUMBERS),
        (files.videos, VIDEO_FIELDS, VIDEO_NUMBERS),
    ):
        ids = table.column(0).to_numpy()
        order = np.argsort(ids)
        line = order[np.searchsorted(ids, known[table.column_names[0]], sorter=order)]
        for name in names:  # as places in the table's own alphabet, which keeps the order of the words
            found[name] = np.unique(table[name].to_numpy().astype(str), return_inverse=True)[1][line]
        numbers += [table[name].to_numpy()[line] for name in own]
    return {name: found[name] for name in FIELDS}, np.stack(numbers, 1)


def encode(
    found: Mapping[str, NDArray[Any]], numbers: NDArray[np.float64], train: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float32], list[int]]:
    """Ids 1, 2, ... of the training rows' values, 0 for others; log(1 + numbers), standardised on those rows."""
    words = [np.unique(column[train]) for column in found.values()]
    ids = np.zeros((len(numbers), len(found)), np.int32)
    for f, (column, own) in enumerate(zip(found.values(), words, strict=True)):
        place = np.searchsorted(own, column).clip(max=len(own) - 1)
        ids[:, f] = np.where(own[place] == column, place + 1, 0)
    logs = np.log1p(numbers)
    spread = logs[train].std(0)
    scaled = (logs - logs[train].mean(0)) / np.where(spread > 0, spread, 1)
    return ids, scaled.astype(np.float32), [len(own) + 1 for own in words]


def split_rows(date: NDArray[np.int64], wanted: Sequence[int | None]) -> dict[str, NDArray[np.int64]]:
    """Row numbers per split, by day; of each a fixed sample of so many, in order of time."""
    split = np.searchsorted(list(LAST_DAY.values()), date)
    periods = [np.flatnonzero(split == s) for s in range(len(SPLITS))]
    pairs = zip(SPLITS, periods, wanted, strict=True)
    return {name: np.sort(rows[raw.permutation(len(rows), 3)[:count]]) for name, rows, count in pairs}


def _encoded(scale: str) -> Encoded:
    files = read()
    log = files.log
    rows = split_rows(log["date"], ROWS[scale])
    found, raw_numbers = fields({name: log[name] for name in KNOWN}, files)
    ids, numbers, vocabulary = encode(found, raw_numbers, rows["train"])
    play, duration = log["play_time_ms"] / 1000, log["duration_ms"] / 1000
    share = np.minimum(play / np.where(duration > 0, duration, np.nan), 1)
    targets = np.stack([log["is_click"], share, play, log["tab"], log["long_view"]], 1).astype(np.float32)
    parts = [[a[index] for a in (ids, numbers, targets)] for index in rows.values()]
    splits = {split: tuple(map(torch.from_numpy, part)) for split, part in zip(rows, parts, strict=True)}
    counted = ", ".join(f"{name}: {count:,}" for name, count in files.counts.items())
    people = ", ".join(f"{len(np.unique(log[f'{name}_id'])):,} {name}s" for name in ("user", "video"))
    used = [a[index] for a in (ids, raw_numbers, targets) for index in rows.values()]
    source = f"KuaiRand-Pure (CC BY-SA 4.0), standard log of 25 April to 8 May 2022, {files.kind}"
    said = f"{len(play):,} rows of {people}; counted: {counted}."
    return Encoded(splits, vocabulary, raw.fingerprint(used, *found), source, said)


def _both(labels: Tensor) -> bool:
    return 0 < int(labels.sum()) < len(labels)
