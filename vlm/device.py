"""Where and how a model runs, decided once, with the reason in words that the page can show."""

import gc
import importlib
import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from vlm.errors import UserError

# A container's own limit, which the machine's figures do not show: version 2 of control groups, and 1.
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")


@dataclass(frozen=True)
class Placement:
    """device, dtype and attention implementation, and why."""

    device: str
    dtype: torch.dtype
    attention: str
    reason: str


def choose(big: bool) -> Placement:
    """The placement for this machine; ``big`` models take 16-bit weights on a CPU, too."""
    if on_zero_gpu() or not torch.cuda.is_available():
        dtype, why = (torch.bfloat16, "to fit in memory") if big else cpu_dtype()
        name = type_name(dtype)
        gpu = "ZeroGPU lends no GPU to a model that stays open" if on_zero_gpu() else "no GPU found"
        reason = f"{gpu}: CPU, {name} ({why}), PyTorch SDPA on {torch.get_num_threads()} threads"
        return Placement("cpu", dtype, "sdpa", reason)
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    # Not float16 on older GPUs: in it Qwen2.5-VL overflows on some pictures. bfloat16 is emulated there.
    dtype = torch.bfloat16 if big or major >= 8 else torch.float32
    short = type_name(dtype)
    if why := _no_flash_attention(big, major, minor):
        return Placement("cuda", dtype, "sdpa", f"{name}, {short}, PyTorch SDPA ({why})")
    return Placement("cuda", dtype, "flash_attention_2", f"{name}, {short}, flash-attn 2")


def on_zero_gpu() -> bool:
    """Whether this is a Space that lends its GPU to single calls; between them CUDA is only emulated there."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def _no_flash_attention(big: bool, major: int, minor: int) -> str:
    """Why flash-attn 2 does not serve here; empty where it does."""
    if not big:
        return "flash-attn serves the models from the hub"
    if not 8 <= major <= 9:
        return f"flash-attn 2 does not cover sm_{major}{minor}"
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:  # it is not there, or was built for another torch
        return "flash-attn is not installed" if isinstance(error, ModuleNotFoundError) else "flash-attn does not fit this torch"
    return ""


def type_name(dtype: torch.dtype) -> str:
    """("float32")."""
    return str(dtype).removeprefix("torch.")


def cpu_dtype() -> tuple[torch.dtype, str]:
    """float32, or bfloat16 where it is at least 1.3 times faster here at a prompt and hardly slower at one token; and why.

    Measured in less than half a second, never assumed: one processor multiplies four times faster in bfloat16 (AMX), the
    next ten times slower. TRIMLENS_DTYPE=float32 or bfloat16 decides by hand.
    """
    if wanted := _wanted():
        return wanted, "TRIMLENS_DTYPE"
    prompt, token = _gain(256), _gain(1)
    # Where one token is nearly as fast in both, its measurement scatters (0.9 to 1.0 with AMX); a prompt must not hang on it.
    dtype = torch.bfloat16 if prompt >= 1.3 and token >= 0.7 else torch.float32
    return dtype, f"bfloat16 is {prompt:.1f} times as fast here at a prompt and {token:.1f} times at one token"


def many_rows_dtype() -> torch.dtype:
    """What is faster on this processor for a batch, as :func:`cpu_dtype` but whatever one token takes."""
    return _wanted() or (torch.bfloat16 if _gain(256) >= 1.3 else torch.float32)


def _wanted() -> torch.dtype | None:
    """What TRIMLENS_DTYPE asks for."""
    wanted = os.environ.get("TRIMLENS_DTYPE")
    if wanted not in (None, "", "float32", "bfloat16"):
        raise UserError(f"TRIMLENS_DTYPE is {wanted!r}; it can be float32 or bfloat16.")
    return getattr(torch, wanted) if wanted else None


@lru_cache
def _gain(rows: int) -> float:
    """How many times faster [rows, 576] @ [576, 1536] is in bfloat16; the weights are too many for the cache, as in the model."""
    fastest = {}
    tensors = {t: (torch.ones(rows, 576, dtype=t), torch.ones(24, 1536, 576, dtype=t)) for t in (torch.float32, torch.bfloat16)}
    # Turn by turn, and the best of many: whatever else runs on this machine slows some turns of both, and made a choice by
    # separate measurements wrong on a busy one.
    for index in range(24):
        for dtype, (x, weights) in tensors.items():
            began = time.perf_counter()
            torch.nn.functional.linear(x, weights[index])
            took = time.perf_counter() - began
            fastest[dtype] = min(took, fastest.get(dtype, took)) if index >= 4 else took
    return fastest[torch.float32] / fastest[torch.bfloat16]


def memory(device: str) -> int:
    """Bytes of memory for weights: free on a GPU; on a CPU what there is in all, of the machine or of its container."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _container())


def free_memory() -> int | None:
    """Bytes of a CPU's memory that are still to be had, of the machine and of its container; None where that cannot be told."""
    free = proc_bytes(MEMINFO, "MemAvailable")
    return None if free is None else max(0, min(free, _container() - proc_bytes(STATUS, "VmRSS")))


def proc_bytes(path: Path, field: str) -> int | None:
    """A field of one of Linux's tables in kB, in bytes; None where there is no such table or field."""
    found = re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE) if path.exists() else None
    return found and 1024 * int(found[1])


def _container() -> int:
    """Bytes that the control group of this process may use; more than any machine has where it has no limit."""
    for path in CGROUPS:
        if path.exists() and (text := path.read_text().strip()).isdigit():
            return int(text)
    return 2**62


def synchronise(device: str) -> None:
    """Waits for the GPU, so that a wall time is the work's."""
    if device == "cuda":
        torch.cuda.synchronize()
