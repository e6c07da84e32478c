"""Triton kernel: a whole greedy MMR selection per program, all its steps inside."""

import triton
import triton.language as tl


@triton.jit
def select(similarity, relevance, importance, sizes, budgets, order, weight, width, BLOCK: tl.constexpr):
    """Grid (B,). similarity [B, W, W], relevance and importance [B, W] float32 -> order [B, W] int64, ``budgets`` set in each row.

    Gains, penalties and what is taken stay in registers; a step reads one row of cosines. The lowest index wins a tie.
    """
    image = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    n, k = tl.load(sizes + image), tl.load(budgets + image)
    free = i < n
    worth = tl.load(relevance + image * width + i, mask=free, other=0.0)
    first = tl.load(importance + image * width + i, mask=free, other=float("-inf"))
    penalty = tl.full([BLOCK], float("-inf"), tl.float32)
    best = tl.argmax(first, 0, tie_break_left=True)
    for step in range(k):
        tl.store(order + image * width + step, best.to(tl.int64))
        free = free & (i != best)
        row = tl.load(similarity + (image * width + best) * width + i, mask=free, other=0.0)
        penalty = tl.maximum(penalty, weight * row)
        best = tl.argmax(tl.where(free, worth - penalty, float("-inf")), 0, tie_break_left=True)
