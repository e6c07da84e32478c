"""Preallocated storage that grows by doubling, so that appending a token costs no copy of the cache."""

from __future__ import annotations

import torch


class Growing:
    """Named tensors [B, H, length, ...] that grow together along the third axis.

    Room is taken in powers of two, so rows of one (batch, head) stay contiguous: ``self[name][b, h]`` is a contiguous
    [length, ...] block, what kernels want. Cropping keeps the room.
    """

    def __init__(self) -> None:
        self.length = 0
        self._room: dict[str, torch.Tensor] = {}

    def append(self, **parts: torch.Tensor) -> None:
        """Adds rows: each part is [B, H, added, ...], with the same names, shapes and types as before."""
        added = next(iter(parts.values())).shape[2]
        stop = self.length + added
        for name, part in parts.items():
            room = self._room.get(name)
            if room is None or room.shape[2] < stop:
                room = part.new_empty(*part.shape[:2], 1 << (stop - 1).bit_length(), *part.shape[3:])
                if self.length:
                    room[:, :, : self.length] = self[name]
                self._room[name] = room
            room.narrow(2, self.length, added).copy_(part)
        self.length = stop

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._room[name].narrow(2, 0, self.length)

    def crop(self, length: int) -> None:
        """Keeps the first ``length`` rows."""
        self.length = min(self.length, length)

    def drop(self, count: int) -> None:
        """Forgets the first ``count`` rows."""
        for room in self._room.values():
            room[:, :, : self.length - count] = room[:, :, count : self.length].clone()
        self.length -= count

    def select(self, index: torch.Tensor) -> None:
        """Rearranges the batch: row b becomes what row index[b] was; int64 [new B]."""
        self._room = {name: room.index_select(0, index) for name, room in self._room.items()}

    @property
    def bytes_stored(self) -> int:
        """Bytes allocated, the room for growth included."""
        return sum(room.nbytes for room in self._room.values())

    @property
    def bytes_used(self) -> int:
        """Bytes of the rows there are."""
        return sum(self[name].nbytes for name in self._room)
