"""What a trained model is judged by: AUC, log-loss, accuracy; delta-m over methods."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from mtl.errors import NonFiniteError


def _finite(scores: Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).sum())
        raise NonFiniteError(f"{name}: every value must be finite, found {bad} NaN or infinite of {scores.numel()}")
    return scores


def _labelled(outputs: Tensor, name: str, labels: Tensor, classes: int = 2) -> Tensor:
    """The outputs, detached, if they are finite and each label is one of so many classes; waits for the device once."""
    outputs = outputs.detach()
    good = (labels >= 0) & (labels < classes) & (labels == labels.to(torch.int64))
    if not bool(outputs.isfinite().all() & good.all()):
        found = labels[~good][:1].tolist()
        _finite(outputs, name)
        raise ValueError(f"labels: must be whole numbers from 0 to {classes - 1}, found {found[0]:g}")
    return outputs


def _alike(name: str, outputs: Tensor, labels: Tensor) -> None:
    if outputs.shape != labels.shape or outputs.dim() != 1:
        found = f"{tuple(outputs.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"{name} and labels must be (N,) alike, found {found}")


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve from ranks, ties counted half, on the device of `scores`.

    AUC = (sum of the positives' ranks - n1 (n1 + 1) / 2) / (n1 n0), tied scores sharing their mean rank
    (Mann and Whitney 1947; Hanley and McNeil 1982). Shapes: scores (N,), labels (N,) of 0 and 1 -> scalar
    float64. Raises ValueError where the labels hold one class only or other numbers, NonFiniteError for NaN scores.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])).item()
    0.75
    """
    _alike("scores", scores, labels)
    scores = _labelled(scores, "scores", labels)
    ordered = scores.sort().values
    # searchsorted instead of unique: fixed shapes, and it gives each score the mean rank of its ties at once
    below = torch.searchsorted(ordered, scores.contiguous())
    upto = torch.searchsorted(ordered, scores.contiguous(), right=True)
    rank = (below + upto + 1).double() / 2
    positive = labels.double()
    n1 = positive.sum()
    n0 = positive.numel() - n1
    if not bool((n1 > 0) & (n0 > 0)):
        raise ValueError(f"labels: AUC needs both classes, found {int(n1)} ones among {labels.numel()}")
    return ((rank * positive).sum() - n1 * (n1 + 1) / 2) / (n1 * n0)


def log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy in nats, -mean(y log p + (1 - y) log(1 - p)) with p = sigmoid(logit).

    Shapes: logits (N,), labels (N,) of 0 and 1 -> scalar float64. Raises as `auc` does, but takes one class only.

    >>> round(log_loss(torch.zeros(4), torch.tensor([0, 1, 1, 0])).item(), 4)
    0.6931
    """
    _alike("logits", logits, labels)
    return F.binary_cross_entropy_with_logits(_labelled(logits, "logits", labels).double(), labels.double())


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers: sign of a logit (N,), or largest of C class scores (N, C). Scalar float64.

    Labels (N,) of 0 and 1, or 0 to C - 1. Raises ValueError for others, NonFiniteError for NaN outputs.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).item()
    0.5
    """
    classes = outputs.shape[1] if outputs.dim() == 2 else 2
    if outputs.dim() not in (1, 2) or labels.shape != outputs.shape[:1]:
        found = f"{tuple(outputs.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"outputs and labels must be (N,) or (N, C) and (N,), found {found}")
    outputs = _labelled(outputs, "outputs", labels, classes)
    guess = outputs.argmax(1) if outputs.dim() == 2 else outputs > 0
    return (guess == labels.to(guess.dtype)).double().mean()


def delta_m(
    values: ArrayLike, baseline: ArrayLike, higher_is_better: Sequence[bool], tasks: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """Mean relative drop against single-task values, in per cent; negative means better than the baseline.

    delta_m = 100 / K sum_k s_k (M_k - B_k) / B_k with s_k = -1 where higher is better, +1 elsewhere
    (Maninis et al. 2019, with the sign of Navon et al. 2022). Without `tasks` all K metrics weigh the same
    (metric-averaged); with `tasks`, one name per metric, metrics are averaged within each task first
    (task-averaged). The two differ as soon as tasks have unequal numbers of metrics.
    Shapes: values (..., K), baseline (K,) -> (...). Raises ValueError for a baseline of zero.

    >>> delta_m([0.9, 2.2], [1.0, 2.0], [True, False]).round(6).item()
    10.0
    >>> delta_m([0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [True] * 3, tasks=["a", "b", "b"]).item()
    25.0
    """
    value, base = np.asarray(values, float), np.asarray(baseline, float)
    sign = np.where(np.asarray(higher_is_better, bool), -1.0, 1.0)
    if base.ndim != 1 or value.shape[-1:] != base.shape or sign.shape != base.shape:
        raise ValueError(
            f"values, baseline and higher_is_better must agree in the last dimension, "
            f"found {value.shape}, {base.shape} and {sign.shape}"
        )
    if (base == 0).any():
        raise ValueError(f"baseline: delta-m divides by it, found 0 at position {int(np.flatnonzero(base == 0)[0])}")
    drop = 100 * sign * (value - base) / np.abs(base)
    if tasks is None:
        return np.asarray(drop.mean(-1))
    if len(tasks) != base.size:
        raise ValueError(f"tasks must name one task per metric ({base.size}), found {len(tasks)}")
    names = list(dict.fromkeys(tasks))
    groups = [drop[..., [i for i, task in enumerate(tasks) if task == name]].mean(-1) for name in names]
    return np.asarray(np.mean(groups, axis=0))
