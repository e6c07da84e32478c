"""Is it faster here? Decode attention of one layer, timed on the visitor's own machine, beside what its bytes alone would take.

Numbers are synthetic: Gaussian keys and values with a few loud channels, as keys have, and a query that attends evenly or to few
tokens. How many bits are read depends on such things, so the bits are reported with the times. Theory (bytes read over the rate at
which this machine streams memory) and measurement are kept apart; a small cache is read faster than memory streams.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import monotonic, sleep

import plotly.graph_objects as go
import torch

from bench.kv_attention import folded, grouped, stream_rate
from bench.timing import Timing, measure, summary
from kvquant import kernels
from kvquant.kernels import warming
from kvquant.modes import Certified, Exact, Mode, Paper
from kvquant.store import Store
from viz.kv_run import describe_mode
from viz.kv_style import BLUE, GREY, INK, ORANGE, PINK, figure
from vlm import one_thread
from vlm.device import on_zero_gpu, synchronise

CONTEXTS = (1024, 4096, 16384, 65536)
# Public shapes: (query heads, KV heads, head dimension) of a layer.
GEOMETRIES = {
    "TrimLens-150M: 9 on 3, of 64": (9, 3, 64),
    "Qwen2.5-VL-3B: 16 on 2, of 128": (16, 2, 128),
    "Qwen2.5-VL-7B: 28 on 4, of 128": (28, 4, 128),
    "Llama-2-7B: 32 on 32, of 128": (32, 32, 128),
}
# Standard deviation of scores: e**1 between typical tokens, or e**4.
QUERIES = {"evenly": 1.0, "to few tokens": 4.0}
LOUD_CHANNELS, LOUDNESS = 4, 8.0
SECONDS, REPEATS, WARMUP = 12.0, 15, 1
LABEL_WIDTH, AXIS_WIDTH = 24, 26  # characters


@dataclass(frozen=True)
class Path:
    """A way to one layer's decode attention. family: "sdpa", "all bits" or "fewer bits"; bytes: of K and V that it reads."""

    name: str
    family: str
    run: Callable[[], object]
    bytes: int
    bits: float


@dataclass(frozen=True)
class Row:
    """What was measured of a path: seconds, and what its bytes alone would take at the stream rate."""

    name: str
    family: str
    timing: Timing
    theory: float
    bits: float


@dataclass(frozen=True)
class Progress:
    """share: done, 0 to 1; rows: so far, slowest last; rate: bytes a second that this machine streams."""

    share: float
    step: str
    rows: list[Row]
    rate: float


def on_gpu() -> bool:
    """Whether there is a GPU to time on."""
    return torch.cuda.is_available() and not on_zero_gpu()


def kernel_reason(modes: list[Mode]) -> str:
    """Which kernel reads the planes of ``modes``, and why: one sentence, or one for each kind of planes where they differ."""
    if on_gpu():
        return f"Planes are read by the {kernels.triton_ready()[1]}"
    reasons = {format: kernels.kernel_reason(format) for format in formats(modes)}
    if len(set(reasons.values())) == 1:
        return f"Planes are read by the {reasons['fixed']}"
    return " ".join(f"{PLANES[format]} planes are read by the {why}" for format, why in reasons.items())


def synthetic(
    context: int, geometry: tuple[int, int, int], spread: float, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [1, Hq, D], k, v float16 [1, Hkv, context, D]; scores have the standard deviation ``spread``; seeded."""
    heads, kv_heads, dim = geometry
    generator = torch.Generator().manual_seed(0)
    loud = torch.ones(dim)
    loud[:LOUD_CHANNELS] = LOUDNESS
    q, k, v = (torch.randn(1, h, n, dim, generator=generator) for h, n in ((heads, 1), (kv_heads, context), (kv_heads, context)))
    q = q[:, :, 0] * spread * dim**0.5 / loud.norm()
    return q.to(device), (k * loud).half().to(device), v.half().to(device)


def paths(context: int, geometry: tuple[int, int, int], modes: list[Mode], spread: float, device: str) -> Iterator[Path]:
    """SDPA in two types and two forms, our planes with every bit read (the control), and our planes in ``modes``."""
    q, k, v = synthetic(context, geometry, spread, device)
    for dtype, short in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        arguments = (q[:, :, None].to(dtype), k.to(dtype), v.to(dtype))
        for function, form in ((folded, "group folded"), (grouped, "enable_gqa")):
            yield Path(f"SDPA {short}, {form}", "sdpa", partial(function, *arguments), 2 * k.nbytes, 16.0)
    for format in formats(modes):
        store = Store(format, window=0)
        store.append(k, v)
        kind = Paper if format == "half" else Certified
        for mode in [Exact(), *(mode for mode in modes if isinstance(mode, kind))]:
            trace = kernels.decode_attention(q, store, mode)[1]
            run = partial(kernels.decode_attention, q, store, mode, traced=False)
            every = isinstance(mode, Exact)
            name = f"ours, every bit ({PLANES[format].lower()} planes)" if every else f"ours, {describe_mode(mode)}"
            yield Path(name, "all bits" if every else "fewer bits", run, trace.bytes_read, trace.mean_bits)


def formats(modes: list[Mode]) -> list[str]:
    """The planes that ``modes`` and their controls read."""
    return ["fixed"] + ["half"] * any(isinstance(mode, Paper) for mode in modes)


def speeds(context: int, geometry: tuple[int, int, int], modes: list[Mode], spread: float, device: str) -> Iterator[Progress]:
    """Yields after everything that was prepared or timed; paths take turns until ``REPEATS`` rounds or ``SECONDS`` are over.

    Raises ValueError where the numbers do not fit the planes, RuntimeError where memory does not suffice.
    """
    while device == "cpu" and any(warming.making(format) for format in formats(modes)):
        yield Progress(0.0, "compiling the kernels for this processor, once: about a minute", [], 0.0)
        sleep(0.5)  # not in the thread that all answers come from
    yield from _speeds(context, geometry, modes, spread, device)


@one_thread.here
def _speeds(context: int, geometry: tuple[int, int, int], modes: list[Mode], spread: float, device: str) -> Iterator[Progress]:
    yield Progress(0.0, "measuring how fast memory streams", [], 0.0)
    rate = stream_rate(device)
    prepared: list[Path] = []
    # Four forms of SDPA, the control of each kind of planes, and the modes; only how far the bar goes depends on it.
    expected = 6 + len(modes)
    for path in paths(context, geometry, modes, spread, device):
        prepared.append(path)
        yield Progress(0.3 * min(1.0, len(prepared) / expected), f"prepared: {path.name}", [], rate)
    seconds: dict[str, list[float]] = {path.name: [] for path in prepared}
    began = monotonic()
    for turn in range(-WARMUP, REPEATS):
        for path in prepared:
            taken = measure({path.name: partial(_timed, path.run, device)}, 1, 0)[path.name].median
            if turn >= 0:
                seconds[path.name].append(taken)
            share = max((turn + WARMUP + 1) / (REPEATS + WARMUP), (monotonic() - began) / SECONDS)
            yield Progress(
                0.3 + 0.7 * min(1.0, share), f"round {max(turn, 0) + 1}: {path.name}", _rows(prepared, seconds, rate), rate
            )
        if turn >= 0 and monotonic() - began > SECONDS:
            break
    yield Progress(1.0, "done", _rows(prepared, seconds, rate), rate)


def _timed(run: Callable[[], object], device: str) -> None:
    run()
    synchronise(device)


def _rows(prepared: list[Path], seconds: dict[str, list[float]], rate: float) -> list[Row]:
    """Of the paths that have been timed at least once."""
    timed = [(path, seconds[path.name]) for path in prepared if seconds[path.name]]
    rows = [Row(path.name, path.family, summary(times), path.bytes / rate, path.bits) for path, times in timed]
    return sorted(rows, key=lambda row: row.timing.median)


PLANES = {"fixed": "Fixed-point", "half": "Half"}
COLOURS = {"sdpa": GREY, "all bits": ORANGE, "fewer bits": BLUE}
LABELS = {"sdpa": "PyTorch, 16 bits", "all bits": "our planes, every bit (the control)", "fewer bits": "our planes, fewer bits"}


def verdict(rows: list[Row]) -> str:
    """The comparison in one sentence, from the medians: the fastest reading of fewer bits against the fastest SDPA."""
    best = {
        family: min((row for row in rows if row.family == family), key=lambda row: row.timing.median) for family in _families(rows)
    }
    if not {"sdpa", "fewer bits"} <= best.keys():
        return "Time of one layer's decode attention."
    ours, theirs = best["fewer bits"], best["sdpa"]
    ratio = ours.timing.median / theirs.timing.median
    said = f"{ratio:.1f} times slower" if ratio > 1 else f"{1 / ratio:.1f} times faster"
    return f"Here and now, reading fewer bits ({ours.name.removeprefix('ours, ')}) is {said} than the fastest SDPA ({theirs.name})."


def _families(rows: list[Row]) -> set[str]:
    return {row.family for row in rows}


def _label(row: Row) -> str:
    """On two lines where it is long: on a narrow page it would leave the axis no room."""
    label = row.name if row.family == "sdpa" else f"{row.name}: {row.bits:.1f} bits"
    return "<br>".join(textwrap.wrap(label, LABEL_WIDTH))


def speed_figure(progress: Progress, what: str) -> go.Figure:
    """Medians with quartiles (filled), and what the bytes alone would take (hollow); milliseconds, logarithmic.

    what: context and geometry in words.
    """
    rows = progress.rows
    height = 36 * len(rows) + 20
    lines = ["ms, median and quartiles", *textwrap.wrap(f"({what})", AXIS_WIDTH)]
    chart = figure(verdict(rows), height, 6, legend_y=-(26 + 16 * len(lines)) / height)
    for family, colour in COLOURS.items():
        own = [row for row in rows if row.family == family]
        if not own:
            continue
        middle = [1e3 * row.timing.median for row in own]
        chart.add_scatter(
            x=middle,
            y=[_label(row) for row in own],
            mode="markers",
            name=f"measured: {LABELS[family]}",
            marker={"color": colour, "size": 11},
            error_x={
                "array": [1e3 * (row.timing.q3 - row.timing.median) for row in own],
                "arrayminus": [1e3 * (row.timing.median - row.timing.q1) for row in own],
                "color": colour,
                "thickness": 2,
            },
            customdata=[[row.bits, row.timing.n, row.timing.q1 * 1e3, row.timing.q3 * 1e3] for row in own],
            hovertemplate="%{y}<br>%{x:.3g} ms (%{customdata[2]:.3g} to %{customdata[3]:.3g}), %{customdata[1]} runs, "
            "%{customdata[0]:.1f} bits read<extra></extra>",
        )
    chart.add_scatter(
        x=[1e3 * row.theory for row in rows],
        y=[_label(row) for row in rows],
        mode="markers",
        name="theory: bytes read / stream rate",
        marker={"color": PINK, "symbol": "diamond-open", "size": 10, "line": {"width": 2}},
        hovertemplate="%{y}<br>its bytes alone would take %{x:.3g} ms<extra></extra>",
    )
    chart.update_xaxes(type="log", title_text="<br>".join(lines))
    chart.update_yaxes(autorange="reversed", tickfont_size=11, automargin=True, showgrid=False, tickcolor=INK)
    return chart
