"""What a pruning method costs and saves up to the first token: time of its parts, and memory at its peak."""

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from bench.suite.evaluate import Setting
from pruning.tokens import IMAGE, keep_count
from vlm.device import STATUS, proc_bytes
from vlm.model import Answer, Vlm

CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Medians in milliseconds (first_token holds the vision tower, scoring, selection and prefill); peak: bytes, or None."""

    scoring: float
    selection: float
    first_token: float
    peak: int | None


def cold(vlm: Vlm, picture: Image.Image, question: str, setting: Setting) -> Callable[[], Answer]:
    """What runs one question up to its first token, the picture not encoded yet."""
    method = setting.configured() if setting.prune else None
    small = None
    if method and method.after == IMAGE:
        # The tower sees the small picture alone; how small, only the large one's tokens tell.
        whole = vlm.encode(picture)
        small = partial(vlm.smaller, whole, keep_count(len(whole.features), setting.prune))
    vlm.forget()

    def run() -> Answer:
        image = small() if small else vlm.encode(picture)
        if small or not method:
            return next(vlm.answer([image], question))
        ranking = vlm.rank(image, question, method, keep_count(len(image.features), setting.prune))
        return next(vlm.answer([image], question, [ranking], setting.prune))

    return run


def costs(vlm: Vlm, asked: list[tuple[Image.Image, str]], settings: Iterable[Setting], warmup: int = 1) -> dict[Setting, Cost]:
    """Of every setting, over the (picture, question) pairs; all settings take turns on each pair, the first rounds are dropped."""
    runs: dict[Setting, list[tuple[Answer, int | None]]] = {setting: [] for setting in settings}
    for turn, (picture, question) in enumerate(asked[:1] * warmup + asked):
        for setting, done in runs.items():
            run = peak(cold(vlm, picture, question, setting))
            if turn >= warmup:
                done.append(run)
    return {setting: _cost(done) for setting, done in runs.items()}


def _cost(runs: list[tuple[Answer, int | None]]) -> Cost:
    times = [answer.timings for answer, _ in runs]
    middle = {part: round(1e3 * median(getattr(t, part) for t in times), 3) for part in ("scoring", "selection", "first_token")}
    peaks = [most for _, most in runs if most is not None]
    return Cost(**middle, peak=round(median(peaks)) if peaks else None)


def peak(run: Callable[[], Answer]) -> tuple[Answer, int | None]:
    """The result, and the bytes in use at the peak beyond what was in use before; None where that cannot be told."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return run(), torch.cuda.max_memory_allocated() - before
    if not CLEAR.exists():
        return run(), None
    # Linux: what malloc only keeps goes back first, and the high-water mark is reset.
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = proc_bytes(STATUS, "VmRSS")
    return run(), proc_bytes(STATUS, "VmHWM") - before
