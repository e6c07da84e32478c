"""The compiled CPU kernels without the wait: machine code is made once, by a process of its own, and kept on the disk.

Compiling takes about a minute, loading what was kept about two seconds. Until it is there the reference answers.
``python -m kvquant.kernels`` makes it where nobody waits (``make weights``, a container's build).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from kvquant.kernels import fast

ROOT = Path(__file__).resolve().parent.parent.parent
_makers: dict[str, subprocess.Popen] = {}
_known: dict[str, tuple[bool, str]] = {}


def ready(format: str) -> tuple[bool, str]:
    """Whether the kernels of a storage format can answer now, and why, in one sentence. Never waits for a compiler."""
    if format in _known:
        return _known[format]
    if making(format):
        return False, "plain torch reference: the compiled kernel is being made in the background (once, about a minute)."
    if format not in _makers or _mark(format).exists():
        return _load(format)
    said = _makers[format].stdout.read().strip().splitlines()
    _known[format] = False, said[-1] if said else "plain torch reference: compiling ended without a result."
    return _known[format]


def making(format: str) -> bool:
    """Whether the machine code is being made: where it is neither loaded nor on the disk, a process of low priority starts to."""
    if format in _known or importlib.util.find_spec("numba") is None or _mark(format).exists():
        return False
    if format not in _makers:
        command = [sys.executable, "-m", "kvquant.kernels", format]
        _makers[format] = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return _makers[format].poll() is None


def _load(format: str) -> tuple[bool, str]:
    _known[format] = fast.available(format)
    return _known[format]


def make(format: str) -> tuple[bool, str]:
    """Compiles, tries and keeps the kernels of a storage format; waits for it. As :func:`kvquant.kernels.fast.available`."""
    usable, why = _load(format)
    if usable:
        try:
            _mark(format).parent.mkdir(parents=True, exist_ok=True)
            _mark(format).write_text(json.dumps(why))
        except OSError as error:
            # Where nothing can be kept, every process would compile for itself: better none does.
            return False, f"plain torch reference: machine code cannot be kept in {_mark(format).parent} ({error.strerror})."
    return usable, why


@lru_cache
def _mark(format: str) -> Path:
    """The file that says that the machine code of these sources, this numba and this processor is on the disk."""
    import llvmlite.binding as llvm
    import numba

    from kvquant.kernels.cpu.compiling import KEPT

    processor = llvm.get_host_cpu_name() + llvm.get_host_cpu_features().flatten()
    key = hashlib.sha256(f"{numba.__version__} {processor}".encode()).hexdigest()[:12]
    return Path(KEPT) / f"{format}-{key}.ready"
