"""The compiled CPU kernels without the wait: machine code is made once, by a process of its own, and kept on the disk.

Compiling takes about a minute, loading what was kept about two seconds. Until it is there the reference answers.
``python -m kvquant.kernels`` makes it where nobody waits (``make weights``, a container's build).
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from kvquant.kernels import fast

ROOT = Path(__file__).resolve().parent.parent.parent
_lock = threading.RLock()
_makers: dict[str, subprocess.Popen] = {}
_known: dict[str, tuple[bool, str]] = {}


def ready(format: str) -> tuple[bool, str]:
    """Whether the kernels of a storage format can answer now, and why, in one sentence. Never waits for a compiler."""
    if format in _known:
        return _known[format]
    with _lock:
        if making(format):
            return False, "plain torch reference: the compiled kernel is being made in the background (once, about a minute)."
        if format not in _known:
            _known[format] = fast.available(format) if _kept(format) in (True, None) else _failure(format)
        return _known[format]


def making(format: str) -> bool:
    """Whether the machine code is being made: where it is neither loaded nor on the disk, a process of low priority starts to."""
    with _lock:
        if format in _known or _kept(format) in (True, None):
            return False
        if format not in _makers:
            command = [sys.executable, "-m", "kvquant.kernels", format]
            try:
                _makers[format] = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            except OSError as error:  # no room for one more process
                _known[format] = False, f"plain torch reference: the compiler does not start ({error.strerror})."
                return False
        return _makers[format].poll() is None


def make(format: str) -> tuple[bool, str]:
    """Compiles, tries and keeps the kernels of a storage format; waits for it. As :func:`kvquant.kernels.fast.available`."""
    _known[format] = fast.available(format)
    if _known[format][0]:
        try:
            _mark(format).parent.mkdir(parents=True, exist_ok=True)
            _mark(format).touch()
        except OSError as error:
            # Where nothing can be kept, every process would compile for itself: better none does.
            why = f"plain torch reference: machine code cannot be kept in {_mark(format).parent} ({error.strerror})."
            _known[format] = False, why
    return _known[format]


def _kept(format: str) -> bool | None:
    """Whether the machine code is on the disk; None where numba does not start, so that fast.available says why."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return _mark(format).exists()
    except Exception:  # numba fails in many ways while it is imported
        return None


def _failure(format: str) -> tuple[bool, str]:
    """What a compiler said that ended without machine code."""
    said = _makers[format].stdout.read().strip().splitlines()
    return False, said[-1].strip() if said else "plain torch reference: compiling ended without a result."


@lru_cache
def _mark(format: str) -> Path:
    """The file that says that the machine code of these sources, this Python, numba and processor is on the disk."""
    import llvmlite.binding as llvm
    import numba

    from kvquant.kernels.cpu.compiling import HERE, KEPT

    processor = llvm.get_host_cpu_name() + llvm.get_host_cpu_features().flatten()
    versions = f"{sys.implementation.cache_tag} {numba.__version__} {HERE}"
    key = hashlib.sha256(f"{versions} {processor}".encode()).hexdigest()[:12]
    return Path(KEPT) / f"{format}-{key}.ready"
