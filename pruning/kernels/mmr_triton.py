"""MMR and farthest point on a GPU behind a door that opens without it: ``available`` says whether it runs, and why.

One launch for all steps of all images, one program per image, so K host synchronisations become one. An image keeps a single
streaming multiprocessor busy: the gain over a loop of torch calls is in launches saved, not in bandwidth used. Not measured on a
GPU: it runs in Triton's interpreter against the reference and compiles for sm_80 and sm_90 (tests/unit/test_pruning_triton.py).
"""

from __future__ import annotations

import os
from functools import lru_cache

import numpy as np
import torch

from pruning.kernels.units import GRID

# Gains, penalties and flags of an image must fit the registers of one program.
LARGEST = 8192


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernel, on the CPU; set before triton is first imported. For tests only."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=1)
def available() -> tuple[bool, str]:
    """Whether the kernel runs here, and why, in one sentence. Compiles it on the first call."""
    if not (interpreted() or torch.cuda.is_available()):
        return False, "no Triton kernel: there is no NVIDIA GPU here."
    try:
        import triton

        corner = torch.eye(3, 4, device="cpu" if interpreted() else "cuda")
        picked = mmr_orders([corner], [np.array([0.0, 1.0, 0.5], np.float32)], 0.5)[0]
    except Exception as error:  # triton fails in many ways: no wheel, no compiler, an old driver, a GPU it does not know
        return False, f"no Triton kernel: it is not usable ({type(error).__name__}: {error})."
    if picked.tolist() != [1, 2, 0]:
        return False, f"no Triton kernel: it failed its self-test (got {picked.tolist()})."
    where = "in the interpreter: for tests, very slow" if interpreted() else f"on {torch.cuda.get_device_name()}, one launch"
    return True, f"Triton kernel (triton {triton.__version__}) {where}."


def mmr_orders(
    features: list[torch.Tensor], importance: list[np.ndarray], lam: float, budgets: list[int] | None = None
) -> list[np.ndarray]:
    """The first picks of maximal marginal relevance for several images, in the order picked: int64 [k_b] each.

    features: [N_b, D], any floating type, on one device, N_b at most ``LARGEST``; importance: float32 [N_b]; lam in [0, 1];
    budgets: k_b in 1..N_b, all tokens when None. The picks are those of ``mmr_reference`` on ``device_units(features)``.
    Raises ValueError for too many tokens; ImportError where triton is missing.
    """
    from pruning.kernels.mmr_triton_kernel import select

    sizes = [len(x) for x in features]
    budgets = sizes if budgets is None else budgets
    if max(sizes) > LARGEST:
        raise ValueError(f"The Triton kernel holds at most {LARGEST} tokens of an image, got {max(sizes)}.")
    device, width = features[0].device, max(sizes)
    similarity = torch.zeros(len(sizes), width, width, device=device)
    worth = torch.zeros(2, len(sizes), width)
    for index, (x, values) in enumerate(zip(features, importance, strict=True)):
        units = device_units(x).double()
        # Exact in float64 (see units), so the float32 cosines are those of the reference.
        similarity[index, : len(x), : len(x)] = units @ units.T
        worth[0, index, : len(x)] = torch.from_numpy(np.float32(lam) * values)
        worth[1, index, : len(x)] = torch.from_numpy(values)
    worth = worth.to(device)
    order = torch.zeros(len(sizes), width, dtype=torch.long, device=device)
    counts = torch.tensor([sizes, budgets], dtype=torch.int32, device=device)
    weight = float(np.float32(1) - np.float32(lam))
    block = 1 << max(4, (width - 1).bit_length())
    select[(len(sizes),)](similarity, worth[0], worth[1], counts[0], counts[1], order, weight, width, BLOCK=block, num_warps=8)
    return [row[:k] for row, k in zip(order.cpu().numpy(), budgets, strict=True)]


def device_units(features: torch.Tensor) -> torch.Tensor:
    """Unit rows float32 [N, D] on the grid of ``units.unit_rows``, without leaving the device.

    Lengths are float64 here and float32 there, so a coordinate may lie a few steps of the grid, 2**-26 each, away.
    """
    rows, grid = features.double(), float(GRID)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
    return ((rows / lengths * grid).round() / grid).float()
