"""The input of nets on tables: embeddings beside numbers, and linear maps of them that never build the wide row."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Weights of this size gain from a gradient laid out as they are; below, published rows stay equal to the last digit.
LARGE = 1 << 20
Read = Callable[[nn.Linear], Tensor]  # a linear map of whatever stands behind it


class TabularInput(nn.Module):
    """Embeddings of the categorical fields beside the numerical ones: (B, F) ids, (B, N) floats -> (B, F d + N).

    All fields share one table with an offset per field; id 0 of a field is its unknown value. `forward` is the
    plain layer x. A net that only takes linear maps of x calls `encode` once and `linear` for each map, which never
    build x: for the fields of at most `fold` values (default: d, from where on it pays) y = x W^T + b is a product of
    the multi-hot row with the tables E_f W_f^T, the others are looked up. Same function, same parameters, same
    gradients. fold=0 looks all fields up.

    >>> TabularInput([3, 5], numericals=2, embedding=4)(torch.zeros(7, 2, dtype=torch.int32), torch.ones(7, 2)).shape
    torch.Size([7, 10])
    """

    offsets: Tensor
    near: Tensor
    columns: Tensor
    far: Tensor

    def __init__(self, vocabulary: Sequence[int], numericals: int, embedding: int, fold: int | None = None) -> None:
        super().__init__()
        sizes, limit = list(vocabulary), embedding if fold is None else fold
        ends = torch.tensor(sizes).cumsum(0)
        small = [f for f, size in enumerate(sizes) if size <= limit]
        large = [f for f, size in enumerate(sizes) if size > limit]
        starts = torch.tensor([0] + [sizes[f] for f in small[:-1]]).cumsum(0)[: len(small)]
        for name, values in (
            ("offsets", F.pad(ends[:-1], (1, 0))),
            ("near", torch.tensor(small, dtype=torch.int64)),
            ("columns", starts),
            ("far", torch.tensor(large, dtype=torch.int64)),
        ):
            self.register_buffer(name, values if name in ("near", "far") else values.to(torch.int32), persistent=False)
        self.table = nn.Embedding(int(ends[-1]), embedding)
        nn.init.normal_(self.table.weight, std=embedding**-0.5)
        self.width = len(sizes) * embedding + numericals
        self.vocabulary, self.folded = sizes, [size <= limit for size in sizes]
        self.hot = sum(sizes[f] for f in small)
        self.blocks = [embedding] * len(sizes) + [numericals]

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return torch.cat([self.table(ids + self.offsets).flatten(1), numbers], 1)

    def encode(self, ids: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `linear` needs: the embedding table, rows (B, V + N) multi-hot beside numbers, embeddings looked up.

        The table is among them, since a net cut here must still reach it; as a view, so that it can be cut.
        """
        rows = F.pad(numbers, (self.hot, 0))
        if self.hot:  # not in place, for which vmap would go row by row
            rows = rows.scatter(1, (ids.index_select(1, self.near) + self.columns).long(), 1.0)
        far = rows.new_zeros(len(ids), 0)
        if len(self.far):
            far = self.table(ids.index_select(1, self.far) + self.offsets[self.far]).flatten(1)
        table = self.table.weight
        return table.view_as(table), rows, far

    def linear(self, code: tuple[Tensor, ...], layer: nn.Linear) -> Tensor:
        """layer(x) from the code of x: [hot, numbers] [E_f W_f^T; W_n^T] + far W_far^T + b."""
        table, rows, far = code
        # split, not slices: the gradient of each slice would fill a matrix as large as the whole
        *fields, numbers = layer.weight.split(self.blocks, 1)
        triples = zip(table.split(self.vocabulary), fields, self.folded, strict=True)
        large = layer.weight.numel() >= LARGE
        maps = [(w @ e.T).T if large else e @ w.T for e, w, folded in triples if folded]
        y = torch.addmm(layer.bias, rows, torch.cat([*maps, numbers.T]))
        looked_up = [w for w, folded in zip(fields, self.folded, strict=True) if not folded]
        return y + far @ torch.cat(looked_up, 1).T if looked_up else y
