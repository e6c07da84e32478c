"""One decode step of attention, kernel by kernel: ``python -m bench.kv_attention [--geometry qwen2.5-vl-7b] [--context 16384]``.

certified: TrimLens's progressive reading at ``--error`` (by default 0.2 of ||o|| is proven; what is measured is a few hundredths
of that at 1k tokens and a few thousandths from 16k on). control: the same kernels, every bit of the same planes. paper:
AlignedKV's rule on half planes. sdpa_*: torch, as transformers calls it (``enable_gqa``) and folded, the query heads of a group
as the query length, the fastest form of it on a CPU. ort_int8: onnxruntime's GroupQueryAttention, one scale per channel. Batch 1;
each call is the whole door, without traces.

Several layers' caches take turns, four at most, as they do in a model: from 8k tokens on they exceed most last-level caches
together, below that they may not. Kernels take turns as well, warm-up dropped. error: the largest ||o' - o|| / ||o|| over the
query heads and layers, o in float64 from the numbers that all caches were given. bytes: of keys, values and constants that one
step touches. share: bytes over time, against the fastest reading of 256 MB by torch.sum on the same threads.

The data are bench.kv_data's. Sizes that this machine has no memory for are left out, and said so. Ends with one JSON line,
{geometry: {context: {kernel: {"ms": x, "error": x, "bytes": x}}}}.
``--out assets/results/kv_attention.json`` keeps it for the page, size by size.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from bench import kv_data, kv_ort
from bench.timing import Timing, measure, positive
from kvquant.kernels import decode_attention, warm_up
from kvquant.modes import Certified, Exact, Mode, Paper
from kvquant.store import Store
from vlm.device import free_memory, synchronise

# Query heads, KV heads, head dimension.
GEOMETRIES = {
    "embedded": (9, 3, 64),
    "qwen2.5-vl-3b": (16, 2, 128),
    "qwen2.5-vl-7b": (28, 4, 128),
    "llama-2-7b": (32, 32, 128),
}
CONTEXTS = tuple(1024 << k for k in range(8))
KERNELS = "certified paper control sdpa_bf16 sdpa_bf16_folded sdpa_fp16 sdpa_fp16_folded ort_int8".split()
# Where MOST_LAYERS allow it, the layers' 16-bit numbers exceed a last-level cache of 32 MiB without the other kernels' caches.
COLD, MOST_LAYERS = 64 << 20, 4
# Larger than the caches of most processors, smaller than what a visitor's machine would miss.
STREAM_BYTES = 1 << 28
# Memory that a layer's caches of all kinds take while they are built, over that of its K and V in 16 bits; and tokens of a prompt
# that are stored in one go.
ROOM = 10
PART = 16384


@dataclass(frozen=True)
class Kernel:
    """``run(layer)`` -> float32 [1, Hq, D]; bytes that it reads per step; its layers' caches live in the closure."""

    run: Callable[[int], torch.Tensor]
    bytes: int


def planes(layers: list, mode: Mode, format: str) -> Kernel:
    """A kernel of TrimLens; layers: of (q, k, v)."""
    stores = []
    for _, k, v in layers:
        store = Store(format)
        for some_k, some_v in zip(k.split(PART, dim=2), v.split(PART, dim=2), strict=True):
            store.append(some_k.bfloat16(), some_v.bfloat16())
        stores.append(store)

    def run(i: int) -> torch.Tensor:
        return decode_attention(layers[i][0], stores[i], mode, traced=False)[0]

    traces = [decode_attention(q, store, mode)[1] for (q, _, _), store in zip(layers, stores, strict=True)]
    return Kernel(run, sum(t.bytes_read for t in traces) // len(traces))


def folded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of [1, Hq, 1, D] with the query heads of a group as rows of one product: K and V are read once. As q."""
    groups = q.view(1, k.shape[1], -1, q.shape[-1])
    return sdpa(groups, k, v).view(q.shape)


def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of [1, Hq, 1, D] as PyTorch offers it for grouped heads."""
    return sdpa(q, k, v, enable_gqa=True)


def torch_sdpa(layers: list, dtype: torch.dtype, form: Callable) -> Kernel:
    """torch on K and V in ``dtype``; form: :func:`folded` or :func:`grouped`."""
    cast = [(q[:, :, None].to(dtype), k.to(dtype), v.to(dtype)) for q, k, v in layers]
    return Kernel(lambda i: form(*cast[i])[:, :, 0], cast[0][1].nbytes + cast[0][2].nbytes)


def onnxruntime(layers: list) -> Kernel:
    """onnxruntime on int8."""
    runs = [kv_ort.decoder(q.shape[1], k, v, torch.get_num_threads()) for q, k, v in layers]
    _, kv_heads, length, dim = layers[0][1].shape
    return Kernel(lambda i: runs[i](layers[i][0]), 2 * kv_heads * dim * (length + 4))


def build(names: list[str], layers: list, error: float) -> dict[str, Kernel]:
    """The kernels asked for that this machine has."""
    makers = {
        "certified": lambda: planes(layers, Certified(error), "fixed"),
        "control": lambda: planes(layers, Exact(), "fixed"),
        "paper": lambda: planes(layers, Paper(), "half"),
        "ort_int8": lambda: onnxruntime(layers),
    }
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for end, form in (("", grouped), ("_folded", folded)):
            makers[f"sdpa_{name}{end}"] = lambda dtype=dtype, form=form: torch_sdpa(layers, dtype, form)
    if not kv_ort.available()[0]:
        del makers["ort_int8"]
    return {name: makers[name]() for name in names if name in makers}


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """float64 [1, Hq, D], one KV head at a time."""
    queries = q[0].double().unflatten(0, (k.shape[1], -1))
    heads = (sdpa(x[None], y.double()[None], z.double()[None])[0] for x, y, z in zip(queries, k[0], v[0], strict=True))
    return torch.cat(list(heads))[None]


def compare(geometry: str, context: int, names: list[str], error: float, repeats: int, data: str) -> dict[str, tuple]:
    """{kernel: (timing, error, bytes)} of one size."""
    heads, kv_heads, dim = GEOMETRIES[geometry]
    count = max(1, min(MOST_LAYERS, -(-COLD // (4 * kv_heads * dim * context))))
    layers = [kv_data.make(data, heads, kv_heads, dim, context, seed) for seed in range(count)]
    kernels = build(names, layers, error)
    answers = [exact(*layer) for layer in layers]
    errors = {}
    for name, kernel in kernels.items():
        off = [(kernel.run(i).double() - o).norm(dim=-1) / o.norm(dim=-1) for i, o in enumerate(answers)]
        errors[name] = float(torch.stack(off).max())
    turn = {name: 0 for name in kernels}

    def step(name: str) -> None:
        turn[name] = (turn[name] + 1) % count
        kernels[name].run(turn[name])

    times = measure({name: lambda name=name: step(name) for name in kernels}, repeats, warmup=2)
    return {name: (times[name], errors[name], kernel.bytes) for name, kernel in kernels.items()}


def stream_rate(device: str = "cpu") -> float:
    """Bytes a second at which memory is read here: the best of a few sums over a quarter of a gigabyte."""
    x = torch.ones(STREAM_BYTES // 4, device=device)

    def add() -> None:
        x.sum()
        synchronise(device)

    return STREAM_BYTES / min(measure({"sum": add}, 1)["sum"].median for _ in range(4))


def fits(geometry: str, context: int) -> bool:
    """Whether a size can be measured in the memory that is free."""
    _, kv_heads, dim = GEOMETRIES[geometry]
    return has_room(max(4 * kv_heads * dim * context, COLD))


def has_room(size: int) -> bool:
    """Whether all that is made of a cache of ``size`` bytes has room in the memory that is free."""
    free = free_memory()
    return free is None or ROOM * size <= free


def where() -> str:
    """The machine in words."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    unit = "AVX-512 VNNI" if any("avx512_vnni" in line for line in info) else "no AVX-512 VNNI"
    return f"{torch.get_num_threads()} threads of one {name or platform.machine()} ({unit})"


def show(found: dict[str, tuple[Timing, float, int]], rate: float) -> None:
    """One line per kernel."""
    for name, (t, error, read) in found.items():
        share = read / t.median / rate
        spread = f"({t.q1 * 1e3:.2f} - {t.q3 * 1e3:.2f})"
        print(
            f"    {name:17} {t.median * 1e3:9.3f} ms {spread:20} error {error:8.2e}  {read / 1e6:9.2f} MB  {share:4.0%} of stream"
        )


def keep(path: Path, about: dict, record: dict) -> None:
    """Writes the record over what the file holds of the same machine, error and data; what is of others goes."""
    try:
        old = json.loads(path.read_text())
        known = old["measured"] if about.items() <= old.items() else {}
    except (OSError, ValueError, KeyError, AttributeError):
        known = {}
    merged = {geometry: known.get(geometry, {}) | record.get(geometry, {}) for geometry in known | record}
    path.write_text(json.dumps(about | {"measured": merged}) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Measures, prints tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, help="all when left out")
    parser.add_argument("--context", type=positive, help="tokens; 1k to 128k when left out")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="some of them, separated by commas")
    parser.add_argument("--error", type=float, default=0.2, help="what the certified kernel must prove")
    parser.add_argument("--data", choices=kv_data.KINDS, default="like")
    parser.add_argument("--repeats", type=positive, default=15)
    parser.add_argument("--out", type=Path, help="a file for the numbers and where they were measured (the page's map of regimes)")
    arguments = parser.parse_args(argv)
    names = arguments.kernels.split(",")
    if not arguments.error > 0:
        parser.error(f"the certified error must be positive, got {arguments.error}")
    if unknown := set(names) - set(KERNELS):
        parser.error(f"unknown kernels {', '.join(sorted(unknown))}; known: {', '.join(KERNELS)}")
    reason = warm_up()
    rate, record = stream_rate(), {}
    print(f"{torch.get_num_threads()} threads, stream {rate / 1e9:.1f} GB/s; {reason} {kv_ort.available()[1]}.")
    for geometry in [arguments.geometry] if arguments.geometry else GEOMETRIES:
        for context in [arguments.context] if arguments.context else CONTEXTS:
            print(f"{geometry}, {context} tokens ({arguments.data}), medians (quartiles) of {arguments.repeats} interleaved runs")
            if not fits(geometry, context):
                print("    left out: not enough free memory")
                continue
            found = compare(geometry, context, names, arguments.error, arguments.repeats, arguments.data)
            show(found, rate)
            record.setdefault(geometry, {})[str(context)] = {
                name: {"ms": round(t.median * 1e3, 4), "error": float(f"{error:.3g}"), "bytes": read}
                for name, (t, error, read) in found.items()
            }
            if arguments.out:
                keep(arguments.out, {"where": where(), "error": arguments.error, "data": arguments.data}, record)
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
