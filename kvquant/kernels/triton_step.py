"""What one decode step asks of the GPU: the shape of the grid, the buffers that pieces share, and how kernels are launched."""

from __future__ import annotations

import math

import torch
import triton

from kvquant.store import Store

# Not measured on a GPU. What to try there, one at a time, at 4k, 16k and 64k tokens and groups of 1, 4 and 7: rows of a block
# (larger ones hide latency and cost registers; ptxas for sm_90, D = 128: 125 registers for the scores and 241 for the fused pass
# with 64 rows, 255 for reading by plan with 32 and spills with 64), and warps of a program;
BLOCK, READ_BLOCK, TAIL_BLOCK, WARPS = 64, 32, 16, 4
# programs to aim for (2 to 4 per streaming multiprocessor; an H100 has 132), the rows that a split is a multiple of (itself one
# of every block), and the most splits, which merging holds in registers all at once.
PROGRAMS, SPLIT, MOST_SPLITS = 264, 128, 63


class Step:
    """One decode step over a store that has planes; every argument of a kernel is found by its name in ``names``.

    q: float32 [B, H, g, D]; mask: bool [B, L] or None. ``pairs`` are (batch row, KV head) pairs, [B, H] flattened.
    """

    def __init__(self, q: torch.Tensor, store: Store, mask: torch.Tensor | None, scale: float) -> None:
        batch, heads, group, dim = q.shape
        self.store, self.q, self.pairs, n = store, q, batch * heads, store.planed
        wanted = min(MOST_SPLITS, max(1, PROGRAMS // self.pairs))
        rows = triton.cdiv(n, wanted * SPLIT) * SPLIT
        slots = triton.cdiv(n, rows) + 1  # the whole tokens come first
        self.grid, self.per_head = (self.pairs, slots - 1), (self.pairs, group)
        gp, dp = (max(16, triton.next_power_of_2(size)) for size in (group, dim))
        self.out = torch.empty_like(q, memory_format=torch.contiguous_format)
        tail = {name: store.tail[name] for name in ("k", "v")}
        self.names = {
            "q": q.contiguous(),
            "k_tail": tail["k"],
            "v_tail": tail["v"],
            "visible": q if mask is None else mask.contiguous().view(torch.uint8),
            "first": self.empty(gp, dp, dtype=torch.float16),
            "second": self.empty(gp, dp, dtype=torch.float16),
            "heads": self.empty(gp, 4),
            "scores": self.empty(group, n),
            "top": self.empty(slots, gp),
            "sums": self.empty(slots, gp, 16),
            "acc": self.empty(slots, gp, dp),
            "output": self.out,
            "scale": scale,
            "corner": math.sqrt(dim),
            "group": group,
            "planed": n,
            "whole": store.tail.length,
            "tail_room": tail["k"].stride(1) // dim,
            "rows": rows,
            "slots": slots,
            "MASKED": mask is not None,
            "KV_HEADS": heads,
            "GP": gp,
            "D": dim,
            "DP": dp,
            "SP": triton.next_power_of_2(slots),
            "BLOCK": BLOCK,
        }

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A buffer [pairs, *shape]."""
        return torch.empty(self.pairs, *shape, dtype=dtype, device=self.q.device)

    def launch(self, kernel: triton.JITFunction, grid: tuple[int, ...], **more: object) -> None:
        """Runs a kernel; ``more`` goes before ``names``."""
        names = self.names | more
        kernel[grid](**{name: names[name] for name in kernel.arg_names}, num_warps=WARPS)
