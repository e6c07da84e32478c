"""Runs the Triton kernels for tests/unit/test_kv_triton.py, in a process of its own: one JSON line per case.

Triton decides when it is first imported whether its interpreter or its compiler takes a kernel. ``parity`` runs the kernels, on
the CPU with TRITON_INTERPRET=1, else on a GPU; ``compile`` (without it) compiles them for a GPU that need not be there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvquant.alignment import fold, wasted_in_scores, widths
from kvquant.kernels import reference, triton_decode
from kvquant.kernels.triton_fixed import read_fixed
from kvquant.kernels.triton_half import read_half
from kvquant.kernels.triton_step import Step
from kvquant.modes import Certified, Exact, Mode, Paper
from kvquant.store import Store
from tests.unit.test_kv_reference import attention, left_padded, problem, stored

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int8: "*i8", torch.uint8: "*u8"}
TYPES |= {torch.int32: "*i32", int: "i32", float: "fp32"}
DEVICE = "cpu" if triton_decode.interpreted() else "cuda"
MODES = {"exact": Exact(), "paper": Paper(), "coarse": Certified(0.1), "fine": Certified(0.01), "beyond reach": Certified(1e-5)}


def on_device(*args: int, **changes: float) -> Iterator[torch.Tensor]:
    """The tensors of ``problem``."""
    return (x.to(DEVICE) for x in problem(*args, **changes))


def cases() -> Iterator[tuple[str, tuple]]:
    """Name, and (q, k, v, store, mask, mode), all on DEVICE."""
    for name, mode, format, padded, kept, changes in (
        ("fixed, one head per group, D 20", "exact", "fixed", False, 391, {"group": 1, "dim": 20}),
        ("fixed, group 3, left padding", "exact", "fixed", True, 400, {}),
        ("fixed, group 7, D 64, cropped into the planes", "exact", "fixed", True, 301, {"group": 7, "dim": 64, "heads": 1}),
        ("fixed, group 3", "coarse", "fixed", False, 400, {}),
        ("fixed, group 3, left padding", "fine", "fixed", True, 400, {}),
        ("fixed, one head per group, D 20", "fine", "fixed", False, 391, {"group": 1, "dim": 20}),
        ("fixed, group 7, D 64, cropped into the planes", "coarse", "fixed", True, 301, {"group": 7, "dim": 64, "heads": 1}),
        ("fixed, group 3", "beyond reach", "fixed", False, 200, {"batch": 1, "heads": 1}),
        ("fixed, scores in the hundreds", "fine", "fixed", False, 300, {"batch": 1, "peaked": 60.0}),
        ("fixed, even attention", "fine", "fixed", False, 600, {"batch": 1, "heads": 1, "peaked": 0.0}),
        ("half, group 3, left padding", "exact", "half", True, 391, {}),
        ("half, group 7, D 64", "paper", "half", False, 330, {"group": 7, "dim": 64, "heads": 1, "peaked": 0.3, "loud": 3.0}),
        ("half, one head per group, left padding", "paper", "half", True, 391, {"group": 1, "peaked": 0.3, "loud": 3.0}),
        ("whole tokens only", "fine", "fixed", True, 70, {}),
    ):
        q, k, v = on_device(3, length=kept + 37 if "cropped" in name else kept, **changes)
        store = stored(format, k, v)
        store.crop(kept)
        k, v = k[:, :, :kept], v[:, :, :kept]
        yield f"{name}: {mode}", (q, k, v, store, left_padded(q.shape[0], kept).to(DEVICE) if padded else None, MODES[mode])
    q, k, v = on_device(6, batch=1, heads=1, group=1, length=400, peaked=0.05)
    v[0, 0, 77] = 900.0  # hardly attended, yet most of the output
    k[0, 0, 77] -= 2 * q[0, 0] / q[0, 0].norm()
    yield "fixed, a needle with a small score: fine", (q, k, v, stored("fixed", k, v), None, MODES["fine"])
    q, k, v = on_device(5, batch=1, heads=1, length=300)
    k[:, :, 1:200:2], v[:, :, 1:200:2] = k[:, :, :200:2], -v[:, :, :200:2]
    yield "fixed, values that cancel: coarse", (q, k, v, stored("fixed", k, v), None, MODES["coarse"])
    q, k, v = on_device(7, batch=1, length=256)
    yield "fixed, every token in planes: coarse", (q, k, v, stored("fixed", k, v, window=0), None, MODES["coarse"])
    q, k, v = (x.bfloat16() for x in on_device(8, batch=1, length=200))
    yield "fixed, bfloat16: fine", (q, k, v, stored("fixed", k, v), None, MODES["fine"])


def parity(name: str, case: tuple) -> dict:
    """What the kernel and the reference answer, against exact attention in float64."""
    q, k, v, store, mask, mode = case
    out, trace = triton_decode.decode_attention(q, store, mode, mask)
    expected, known = reference.decode_attention(q, store, mode, mask)
    error = out.double() - attention(q, k, v, mask)
    n, largest = store.planed, float(v.abs().max())
    answer = {
        "difference": float((out - expected).abs().max()) / largest,
        "beyond_bound": float((error.norm(dim=-1) - trace.bound).max()) / largest,
        "beyond_bound_max": float((error.abs().amax(-1) - trace.bound_max).max()) / largest,
        "bound": float((trace.bound / trace.norm).max()),
        "bound_of_reference": float((known.bound / known.norm).max()),
        "bits": float(trace.key_bits[:, :, :n].mean() + trace.value_bits[:, :, :n].mean()) / 2 if n else 0.0,
        "bits_of_reference": float(known.key_bits[:, :, :n].mean() + known.value_bits[:, :, :n].mean()) / 2 if n else 0.0,
        "bytes": trace.bytes_read,
        "bytes_of_reference": known.bytes_read,
        "rounds": trace.rounds,
        "target": getattr(mode, "error", None),
    }
    return {"case": name, **answer}


def unread(name: str, store: Store, q: torch.Tensor, mode: Mode) -> dict:
    """Fills what the trace says was not read with noise, and reads again."""
    out, trace = triton_decode.decode_attention(q, store, mode)
    planes, n = store.planes, store.planed
    if store.format == "fixed":
        key_bits, middle = trace.key_bits[:, :, :n, None], ()
    else:
        key_bits = widths(wasted_in_scores(q, planes.k_peak), mode.steps)[:, :, None, :, None]
        middle = (("middle", 12),)
    filled = 0
    for growing, bits in ((planes.keys, key_bits), (planes.values, trace.value_bits[:, :, :n, None])):
        for part, least in (("high", 8), *middle, ("low", 16)):
            rows = growing[part]
            hidden = (bits < least).expand(rows.shape)
            rows[hidden] = torch.randint(0, 100, (int(hidden.sum()),)).to(rows)
            filled += int(hidden.sum())
    again, _ = triton_decode.decode_attention(q, store, mode)
    return {"case": name, "filled": filled, "same": torch.equal(out, again)}


def compile_for(capability: int) -> None:
    """Sends every kernel that ``read_fixed`` and ``read_half`` launch to the compiler, with the types it is launched with."""

    def launch(self: Step, kernel: triton.JITFunction, grid: tuple[int, ...], **more: object) -> None:
        names = self.names | more
        # As Triton launches a kernel: an integer of 1 is a constant, too, and tensors are aligned.
        fixed = [p.name for p in kernel.params if p.is_constexpr or (type(names[p.name]) is int and names[p.name] == 1)]
        constants = {(kernel.arg_names.index(name),): names[name] for name in fixed}
        values = {name: names[name] for name in kernel.arg_names if name not in fixed}
        signature = dict.fromkeys(kernel.arg_names, "constexpr")
        signature |= {name: TYPES[x.dtype if isinstance(x, torch.Tensor) else type(x)] for name, x in values.items()}
        aligned = {
            (kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n, x in values.items() if isinstance(x, torch.Tensor)
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        flags = [name for name in ("FUSED", "FIRST", "ALL") if name in kernel.arg_names and names[name]]
        answer = {"case": " ".join([kernel.__name__, *flags]), "capability": capability, "shared": built.metadata.shared}
        print(json.dumps(answer | {"tensor_cores": "mma.sync" in built.asm["ptx"]}), flush=True)

    Step.launch = launch
    q, k, v = problem(0, batch=1, length=300, dim=64, group=1)
    for read, format, mode in ((read_fixed, "fixed", Exact()), (read_fixed, "fixed", Certified()), (read_half, "half", Paper())):
        read(fold(q, k.shape[1]), stored(format, k.half(), v.half()), mode, left_padded(1, 300), 0.125)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if sys.argv[1] == "compile":
        compile_for(int(sys.argv[2]))
    else:
        print(json.dumps({"case": "available", "answer": triton_decode.available()}), flush=True)
        for name, case in cases():
            print(json.dumps(parity(name, case)), flush=True)
        q, k, v = on_device(7, batch=1, heads=1, length=400, peaked=0.5)
        print(json.dumps(unread("unread, certified", stored("fixed", k, v), q, Certified(0.1))), flush=True)
        q, k, v = on_device(7, batch=1, heads=1, length=300, peaked=0.5, loud=3.0)
        print(json.dumps(unread("unread, paper", stored("half", k, v), q, Paper())), flush=True)
