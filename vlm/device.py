"""Where and how a model runs, decided once, with the reason in words that the page can show."""

import importlib.util
import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Placement:
    """device, dtype and attention implementation, and why."""

    device: str
    dtype: torch.dtype
    attention: str
    reason: str


def choose(big: bool) -> Placement:
    """The placement for this machine; ``big`` models take 16-bit weights on a CPU, too.

    Call it inside a GPU function on Spaces: outside, CUDA is emulated there.
    """
    if not torch.cuda.is_available():
        dtype = torch.bfloat16 if big else torch.float32
        name = str(dtype).removeprefix("torch.")
        return Placement("cpu", dtype, "sdpa", f"no GPU found: CPU, {name}, PyTorch SDPA on {torch.get_num_threads()} threads")
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    dtype = torch.bfloat16 if major >= 8 else torch.float16
    short = str(dtype).removeprefix("torch.")
    if importlib.util.find_spec("flash_attn") is None:
        return Placement("cuda", dtype, "sdpa", f"{name}, {short}, PyTorch SDPA (flash-attn is not installed)")
    if not 8 <= major <= 9:
        return Placement("cuda", dtype, "sdpa", f"{name}, {short}, PyTorch SDPA (flash-attn 2 does not cover sm_{major}{minor})")
    return Placement("cuda", dtype, "flash_attention_2", f"{name}, {short}, flash-attn 2")


def memory(device: str) -> int:
    """Bytes of memory for weights: free on a GPU, physical on a CPU."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def synchronise(device: str) -> None:
    """Waits for the GPU, so that a wall time is the work's."""
    if device == "cuda":
        torch.cuda.synchronize()
