"""Triton kernels: they answer what the reference answers, keep their bounds, read what they count, and compile for a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from kvquant.kernels import triton_decode
from kvquant.modes import Certified, Exact
from tests.unit.test_kv_reference import problem, stored

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
WHERE = ["interpreter", pytest.param("gpu", marks=needs_gpu)]


def child(*args: str, **environment: str) -> list[dict]:
    """The lines of tests/unit/kv_triton_child.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "tests.unit.kv_triton_child", *args]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@lru_cache
def parity(where: str) -> list[dict]:
    return child("parity", TRITON_INTERPRET="1" if where == "interpreter" else "0")


def answers(where: str, *words: str) -> list[dict]:
    """The lines whose case has all the words."""
    found = [line for line in parity(where) if all(word in line["case"] for word in words)]
    assert found, f"no case {words}"
    return found


@needs_triton
@pytest.mark.parametrize("where", WHERE)
def test_all_bits_answer_as_the_reference(where):
    for line in answers(where, ": exact") + answers(where, "whole tokens only"):
        print(f"{line['case']}: largest difference {line['difference']:.2g} of the largest value, bound {line['bound']:.2g}")
        assert line["difference"] < 3e-6
        assert line["bytes"] == line["bytes_of_reference"]
        assert line["bound"] <= 2 * line["bound_of_reference"]


@needs_triton
@pytest.mark.parametrize("where", WHERE)
def test_the_paper_mode_reads_the_same_bits_as_the_reference(where):
    for line in answers(where, ": paper"):
        print(f"{line['case']}: largest difference {line['difference']:.2g} of the largest value, {line['bits']:.2f} bits")
        assert line["difference"] < 1e-4  # a probability next to a power of two may be read with another width
        assert line["bits"] == pytest.approx(line["bits_of_reference"], abs=0.05)
        assert line["bound"] == pytest.approx(line["bound_of_reference"], rel=1e-2)


@needs_triton
@pytest.mark.parametrize("where", WHERE)
def test_the_bounds_hold(where):
    for line in answers(where, "fixed,") + answers(where, "half,"):
        print(
            f"{line['case']}: beyond its bound by {line['beyond_bound']:.2g}, {line['beyond_bound_max']:.2g} of the largest value"
        )
        assert line["beyond_bound"] < 3e-6  # float32 arithmetic comes on top of the bound
        assert line["beyond_bound_max"] < 3e-6


@needs_triton
@pytest.mark.parametrize("where", WHERE)
def test_certified_reading_meets_its_error_with_few_bits(where):
    for line in answers(where, ": coarse") + answers(where, ": fine") + answers(where, ": beyond reach"):
        bits, known, target = line["bits"], line["bits_of_reference"], line["target"]
        print(f"{line['case']}: {bits:.2f} bits (reference {known:.2f}), {line['rounds']} rounds, bound {line['bound']:.2g}")
        assert line["bound"] <= target or bits > 15
        assert bits < 16 or known > 12
        assert bits <= known + 2
    assert answers(where, "cancel")[0]["rounds"] > 1  # the norm of the output was estimated wrongly, and found out


@needs_triton
@pytest.mark.parametrize("where", WHERE)
def test_what_is_not_counted_is_not_read(where):
    for line in answers(where, "unread"):
        assert line["filled"] > 1000
        assert line["same"]


@needs_triton
def test_the_interpreter_counts_as_available():
    usable, reason = answers("interpreter", "available")[0]["answer"]
    assert usable
    assert "interpreter" in reason


@needs_triton
@pytest.mark.parametrize("capability", [90])
def test_every_kernel_compiles_for_a_gpu(capability, tmp_path):
    lines = child("compile", str(capability), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    built = {line["case"]: line for line in lines}
    one_pass, scores = {"open_step", "read_rows FUSED", "merge"}, {"score_rows", "plan FIRST", "plan", "plan ALL", "read_rows"}
    assert set(built) == one_pass | scores | {"score_halves", "sum_halves"}
    # Four programs of an SM share 227 KiB; products go to the matrix units.
    assert max(line["shared"] for line in lines) <= 56 * 1024
    assert all(built[name]["tensor_cores"] for name in ("read_rows FUSED", "read_rows", "score_rows", "score_halves", "sum_halves"))


@pytest.mark.skipif(torch.cuda.is_available() or triton_decode.interpreted(), reason="Triton can run here")
def test_without_a_gpu_the_door_says_so():
    usable, reason = triton_decode.available()
    assert not usable
    assert "no NVIDIA GPU" in reason
    q, k, v = problem(0, length=200)
    with pytest.raises(ValueError, match="GPU's memory"):
        triton_decode.decode_attention(q, stored("fixed", k, v), Certified())
    with pytest.raises(ValueError, match="mode Exact or Paper"):
        triton_decode.decode_attention(q, stored("half", k, v), Certified())
    assert torch.isfinite(triton_decode.decode_attention(q, stored("whole", k, v), Exact())[0]).all()
