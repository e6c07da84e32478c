"""Runs the Triton MMR kernel for tests/unit/test_pruning_triton.py, in a process of its own: one JSON line per case.

As in kv_triton_child: Triton decides when it is first imported whether its interpreter or its compiler takes a kernel.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pruning.kernels import mmr_reference, mmr_triton
from pruning.kernels.mmr_triton import device_units, mmr_orders
from pruning.kernels.mmr_triton_kernel import select
from tests.unit.test_pruning_selectors import KINDS, problem

DEVICE = "cpu" if mmr_triton.interpreted() else "cuda"


def parity(lam: float) -> dict:
    """All kinds of problems, of different sizes and budgets, in one launch."""
    problems = [problem(seed, 11 + 7 * seed, 16, kind) for seed, kind in enumerate(KINDS)]
    features, importance = [x.to(DEVICE) for x, _ in problems], [values for _, values in problems]
    budgets = [max(1, (seed * len(x)) // len(KINDS)) for seed, x in enumerate(features)]
    differ = 0
    for sizes in (None, budgets):
        orders = mmr_orders(features, importance, lam, sizes)
        alone = [mmr_orders([x], [v], lam, None if sizes is None else [sizes[i]])[0] for i, (x, v) in enumerate(problems)]
        for index, (x, values) in enumerate(zip(features, importance, strict=True)):
            k = None if sizes is None else sizes[index]
            expected = mmr_reference(device_units(x).cpu().numpy(), values, lam, k)
            differ += int((orders[index] != expected).sum()) + int((alone[index] != expected).sum())
    return {"case": f"parity, lambda {lam}", "images": len(problems), "differ": differ}


def compile_for(capability: int) -> None:
    """Compiles the kernel for the largest image; Hopper is 90, Ampere 80."""
    types = {"similarity": "*fp32", "relevance": "*fp32", "importance": "*fp32", "sizes": "*i32", "budgets": "*i32"}
    types |= {"order": "*i64", "weight": "fp32", "width": "i32", "BLOCK": "constexpr"}
    source = ASTSource(fn=select, signature=types, constexprs={"BLOCK": mmr_triton.LARGEST})
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    print(json.dumps({"case": f"sm_{capability}", "shared": built.metadata.shared}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.random.seed(0)
    if sys.argv[1] == "compile":
        compile_for(int(sys.argv[2]))
    else:
        print(json.dumps({"case": "available", "answer": mmr_triton.available()}), flush=True)
        for lam in (0.0, 0.5, 1.0):
            print(json.dumps(parity(lam)), flush=True)
