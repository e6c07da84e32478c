"""The tensors that a cache layer returns: they have a shape and a type, and numbers only when somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from kvquant.cache import StoreLayer
    from kvquant.store import Store


@dataclass(eq=False)
class Contents:
    """What a layer held after its change number ``version``, to be read as ``dtype``. Valid until the next one."""

    layer: StoreLayer
    version: int
    dtype: torch.dtype

    @property
    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All bits: (k, v), [B, Hkv, L, D]; views of what is stored where it is stored whole. Raises as :meth:`current`."""
        self.current()
        return self._dense

    @cached_property
    def _dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer.store.dense(self.dtype)

    def current(self) -> Store:
        """The layer's store. Raises RuntimeError when the layer has changed."""
        if self.layer.version != self.version:
            raise RuntimeError("The cache has changed since these keys and values were returned; they cannot be read any more.")
        return self.layer.store


class StoredTensor(torch.Tensor):
    """K (``which`` 0) or V (1) of a :class:`Contents`: every operation on it sees all bits, as a plain tensor."""

    @staticmethod
    def __new__(cls, contents: Contents, which: int) -> StoredTensor:
        device = contents.layer.store.tail["k"].device
        return torch.Tensor._make_wrapper_subclass(cls, contents.layer.store.shape, dtype=contents.dtype, device=device)

    def __init__(self, contents: Contents, which: int) -> None:
        self.contents, self.which = contents, which

    def __repr__(self) -> str:
        return f"StoredTensor({'KV'[self.which]}, {list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Densifies, then does what was asked."""
        args, kwargs = tree_map_only(cls, lambda x: x.contents.dense[x.which], (args, kwargs or {}))
        return function(*args, **kwargs)
