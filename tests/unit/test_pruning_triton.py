"""The Triton MMR kernel: it picks what the reference picks, several images in one launch, and compiles for a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning import kernels
from pruning.kernels import mmr_order_of, mmr_reference, mmr_triton, unit_rows
from pruning.kernels.mmr_triton import device_units
from tests.unit.test_pruning_selectors import KINDS, problem

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
WHERE = ["interpreter", pytest.param("gpu", marks=needs_gpu)]


@lru_cache
def child(*args: str, interpret: str, cache: str = "") -> list[dict]:
    """The lines of tests/unit/pruning_triton_child.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": interpret}
    environment |= {"TRITON_CACHE_DIR": cache} if cache else {}
    command = [sys.executable, "-m", "tests.unit.pruning_triton_child", *args]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@needs_triton
@pytest.mark.parametrize("where", WHERE)
def test_the_picks_are_those_of_the_reference_alone_and_in_a_batch(where):
    available, *lines = child("parity", interpret="1" if where == "interpreter" else "0")
    assert available["answer"][0], available["answer"][1]
    assert len(lines) == 3
    for line in lines:
        print(f"{line['case']}: {line['differ']} of all picks of {line['images']} images differ")
        assert line["differ"] == 0


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_a_gpu(capability, tmp_path):
    (line,) = child("compile", str(capability), interpret="0", cache=str(tmp_path))
    assert line["shared"] <= 48 * 1024


def test_units_of_a_device_are_those_of_the_cpu_up_to_float32_lengths():
    for kind in KINDS:
        x, _ = problem(2, 40, 96, kind)
        worst = np.abs(device_units(x).numpy() - unit_rows(x)).max()
        assert worst <= 2.0**-21, (kind, worst)
        on_grid = device_units(x).double() * 2**26
        assert torch.equal(on_grid, on_grid.round())


@pytest.mark.skipif(torch.cuda.is_available() or mmr_triton.interpreted(), reason="Triton can run here")
def test_without_a_gpu_the_door_says_so_and_the_cpu_kernel_answers():
    usable, reason = mmr_triton.available()
    assert not usable and "no NVIDIA GPU" in reason
    x, importance = problem(1, 20, 8, "random")
    assert np.array_equal(mmr_order_of(x, importance, 0.5), mmr_reference(unit_rows(x), importance, 0.5))
    assert "numba" in kernels.kernel_reason() or "numpy" in kernels.kernel_reason()


def test_too_many_tokens_are_refused():
    pytest.importorskip("triton")
    many = torch.ones(mmr_triton.LARGEST + 1, 1)
    with pytest.raises(ValueError, match="at most 8192 tokens"):
        mmr_triton.mmr_orders([many], [np.zeros(len(many), np.float32)], 0.5)
