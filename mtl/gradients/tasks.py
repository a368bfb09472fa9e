"""Task gradients over the shared parameters: one (T, D) matrix in blocks, and what is computed from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.gradients.inputs import Grads, workspace
from mtl.gradients.layers import Layer
from mtl.methods.base import Method

TRUST = 1.0  # K from factors may lose half of the digits, times this
CHUNK = 1 << 22  # columns widened at a time where the Gram matrix needs more bits than the gradients have


@dataclass
class Column:
    """Where parameter `index` lies in a block: from `start` on; `rows` are the touched ones of a sparse gradient."""

    index: int
    start: int
    shape: torch.Size
    stride: tuple[int, ...]
    rows: Tensor | None = None

    def row(self, block: Tensor, t: int) -> Tensor:
        """The parameter's part of row t of (T, n), in the parameter's own layout: (*shape)."""
        return block.as_strided(self.shape, self.stride, block.storage_offset() + t * block.stride(0) + self.start)

    def of(self, block: Tensor) -> Tensor:
        """The parameter's part of (T, n) or (n,), in the parameter's own layout: (T, *shape) or (*shape)."""
        lead = block.dim() - 1
        return block.as_strided(
            (*block.shape[:lead], *self.shape),
            (*block.stride()[:lead], *self.stride),
            block.storage_offset() + self.start,
        )


def layout(p: Tensor) -> tuple[int, ...]:
    """The parameter's strides where it fills its memory."""
    if p.is_contiguous() or (p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last)):
        return tuple(p.stride())
    like = p if torch.ops.aten.is_non_overlapping_and_dense(p) else torch.empty(p.shape, device="meta")
    return tuple(like.stride())


def laid(g: Tensor, strides: tuple[int, ...]) -> Tensor:
    """A gradient in the layout of its parameter: fused optimisers read both as they lie in memory, on a CPU unasked."""
    if g.is_sparse or g.stride() == strides:
        return g
    new = torch.empty_strided(g.shape, strides, dtype=g.dtype, device="meta")
    if g.is_contiguous() and new.is_contiguous():  # strides where the size is 1 are all that differs
        return g.as_strided(g.shape, strides)
    return torch.empty_strided(g.shape, strides, dtype=g.dtype, device=g.device).copy_(g)


class TaskGradients:
    """g_t of T tasks over the shared parameters, filled task by task (`store`).

    A parameter that no task reaches takes no space and gets no update. Sparse gradients (nn.Embedding(sparse=True))
    take only the rows that some task touched. The parameters of `layers` are kept as factors.
    """

    def __init__(
        self,
        shared: Sequence[Tensor],
        n_tasks: int,
        *,
        layers: Sequence[Layer] = (),
        all_dense: bool = False,
        owner: Method | None = None,
    ):
        self.shared, self.n_tasks, self.layers = shared, n_tasks, list(layers)
        self.blocks: list[tuple[Tensor, list[Column]]] = []
        self.places: dict[int, tuple[Tensor, Column]] = {}
        self.sparse: dict[int, list[tuple[int, Tensor]]] = {}
        self.touched: list[bool] = [False] * n_tasks
        self._filled: dict[int, set[int]] = {}
        self._all_dense, self._owner = all_dense, owner

    def _allocate(self, indices: Sequence[int]) -> None:
        columns, start = [], 0
        for i in indices:
            p = self.shared[i]
            columns.append(Column(i, start, p.shape, layout(p)))
            start += p.numel()
        owner = self._owner if not self.blocks else None
        matrix = workspace(owner, "gradients", (self.n_tasks, start), self.shared[indices[0]])
        self.blocks.append((matrix, columns))
        self.places |= {c.index: (matrix, c) for c in columns}

    def view(self, i: int) -> Tensor:
        """The gradients of parameter i: (T, *shape)."""
        matrix, column = self.places[i]
        return column.of(matrix)

    def store(self, t: int, grads: Grads) -> None:
        """Row t: one gradient per shared parameter, None where it is not reached; a second call adds."""
        dense = {i: g for i, g in enumerate(grads) if g is not None and not g.is_sparse}
        for i, g in enumerate(grads):
            if g is not None and g.is_sparse:
                self.sparse.setdefault(i, []).append((t, g))
        self.touched[t] |= any(g is not None for g in grads)
        wanted = [i for i in range(len(grads)) if i not in self.sparse] if self._all_dense else list(dense)
        if new := [i for i in wanted if i not in self.places]:
            for dtype in dict.fromkeys(self.shared[i].dtype for i in new):
                self._allocate([i for i in new if self.shared[i].dtype == dtype])
        fresh = [i for i in dense if t not in self._filled.setdefault(i, set())]
        if fresh:
            places = [self.places[i] for i in fresh]
            rows = [column.row(matrix, t) for matrix, column in places]
            # in one layout: a single pair that differs would take all of them off the fast path
            torch._foreach_copy_(rows, [laid(dense[i], c.stride) for i, (_, c) in zip(fresh, places, strict=True)])
        for i in dense:
            if t in self._filled[i]:
                self.view(i)[t] += dense[i]
            self._filled[i].add(t)

    def store_factors(self, t: int, seeds: Grads) -> None:
        """Gradients of task t at the uses of all layers, None where it does not pass."""
        self.touched[t] |= any(g is not None for g in seeds)
        start = 0
        for layer in self.layers:
            layer.store(t, seeds[start : (start := start + len(layer.edges))])

    def finish(self, union: Callable[[Tensor], Tensor] = torch.unique) -> None:
        """Zero what was never written, and gather the touched rows of sparse gradients into blocks of their own."""
        for i, (matrix, column) in self.places.items():
            if len(filled := self._filled.get(i, set())) < self.n_tasks:
                for t in set(range(self.n_tasks)) - filled:
                    column.row(matrix, t).zero_()
        for i, parts in self.sparse.items():
            if i in self.places:  # dense for one task, sparse for another
                for t, g in parts:
                    self.view(i)[t] += g.to_dense()
                continue
            # indices are taken as they are: coalescing each task first would sort T times
            rows = union(torch.cat([g._indices()[0] for _, g in parts]))
            rest = self.shared[i].shape[1:]
            values = self.shared[i].new_zeros((self.n_tasks, len(rows), *rest))
            for t, g in parts:
                values[t].index_add_(0, torch.searchsorted(rows, g._indices()[0]), g._values())
            column = Column(i, 0, values.shape[1:], tuple(values.stride()[1:]), rows)
            self.blocks.append((values.view(self.n_tasks, -1), [column]))

    def gram(self, dtype: torch.dtype) -> Tensor:
        """K = G G^T (T, T) in `dtype`, the sum over blocks and layers.

        Factors lose digits where the examples' gradients cancel in a task's sum: K_tt out of terms that add up to
        kappa K_tt. Beyond kappa = TRUST / sqrt(eps) the gradients are formed after all.
        """
        zeros = torch.zeros(self.n_tasks, self.n_tasks, dtype=dtype, device=self.shared[0].device)
        K = sum((product(block, dtype) for block, _ in self.blocks), zeros)
        if not self.layers:
            return K
        parts, sizes = zip(*(layer.gram() for layer in self.layers), strict=True)
        K = sum(parts, K)
        if (sum(sizes) > K.diagonal() * TRUST / torch.finfo(dtype).eps ** 0.5).any():
            self._form()
            return self.gram(dtype)
        return K

    def _form(self) -> None:
        """Gradients of the layers in place of their factors."""
        for t in range(self.n_tasks):
            formed = {i: g for layer in self.layers for i, g in layer.gradients(layer.seeds[t]).items()}
            self.store(t, [formed.get(i) for i in range(len(self.shared))])
        self.layers = []

    def update(self, weights: Tensor) -> list[Tensor | None]:
        """sum_t w_t g_t per shared parameter; None where no task reaches it."""
        found: list[Tensor | None] = [None] * len(self.shared)
        for layer in self.layers:
            for i, g in layer.gradients(torch.tensordot(weights.to(layer.seeds.dtype), layer.seeds, 1)).items():
                found[i] = g
        for block, columns in self.blocks:
            d = weights.to(block.dtype) @ block
            for c in columns:
                part = c.of(d)
                if c.rows is not None:
                    part = torch.sparse_coo_tensor(
                        c.rows[None], part, self.shared[c.index].shape, is_coalesced=True, check_invariants=False
                    )
                found[c.index] = part
        return found


def product(block: Tensor, dtype: torch.dtype) -> Tensor:
    """B B^T (..., T, T) of (..., T, n) blocks, no input rounded below `dtype` (bfloat16 gradients, TF32 products)."""
    lossy = block.is_cuda and dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    if block.dtype == dtype and not lossy:
        return block @ block.mT
    wide = torch.float64 if lossy else dtype
    parts = (block[..., a : a + CHUNK].to(wide) for a in range(0, block.shape[-1], CHUNK))
    zero = block.new_zeros(*block.shape[:-1], block.shape[-2], dtype=wide)
    return sum((part @ part.mT for part in parts), zero).to(dtype)
