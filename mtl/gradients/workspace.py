"""Memory that a method's steps use again."""

from typing import ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor

from mtl.methods.base import Method


class Workspace:
    """Buffers by method and use, kept between steps on the CPU, where fresh pages cost as much as filling them.

    They live through the step anyway, so the peak is the same; they are freed with the method.
    """

    kept: ClassVar[WeakKeyDictionary[Method, dict[str, Tensor]]] = WeakKeyDictionary()

    @classmethod
    def take(cls, method: Method | None, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if method is None or like.device.type != "cpu":
            return like.new_empty(shape)
        mine = cls.kept.setdefault(method, {})
        buffer = mine.get(use)
        if buffer is None or buffer.shape != shape or buffer.dtype != like.dtype:
            buffer = mine[use] = like.new_empty(shape)
        return buffer
