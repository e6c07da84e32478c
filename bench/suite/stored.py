"""Scores of the suite that outlive a run: what was answered once is read again, by every bench that asks for it."""

import hashlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from bench.suite.evaluate import Setting, run
from bench.suite.tasks import Item
from training.common import RUNS
from vlm.device import type_name
from vlm.embedded import MODEL_DIR
from vlm.model import Vlm
from vlm.words import MARKER_BIAS, MARKER_SHARPNESS, PLACE_SHARE, PLACE_SHARPNESS, SHARE, SHARPNESS

ROOT = Path(__file__).resolve().parents[2]


def answered(vlm: Vlm, task: str, asked: list[Item], settings: list[Setting]) -> dict[Setting, np.ndarray]:
    """Scores [questions] of every setting, read from runs/suite where they were written before."""
    questions = _digest(asked)
    files = {setting: _file(task, questions, setting, type_of(vlm)) for setting in settings}
    missing = [setting for setting in settings if not files[setting].exists()]
    if missing:
        print(f"{task}: {len(missing)} settings", file=sys.stderr, flush=True)
        for setting, scores in run(vlm, asked, missing).items():
            files[setting].parent.mkdir(parents=True, exist_ok=True)
            files[setting].write_text(json.dumps(scores.tolist()))
    return {setting: np.array(json.loads(files[setting].read_text())) for setting in settings}


def _file(task: str, questions: str, setting: Setting, dtype: str) -> Path:
    """Scores of other weights, of another number type or of other questions are other files."""
    words = SHARE, SHARPNESS, MARKER_SHARPNESS, MARKER_BIAS, PLACE_SHARE, PLACE_SHARPNESS
    key = hashlib.sha256(repr((_weights(), words, dtype, questions, setting)).encode()).hexdigest()[:20]
    return RUNS / "suite" / f"{task.replace(' ', '-')}-{key}.json"


def _digest(asked: list[Item]) -> str:
    """Of the pictures, questions and answers: a change of the world makes other questions of the same seed."""
    digest = hashlib.sha256()
    for item in asked:
        digest.update(item.picture.tobytes() + f"{item.question} {item.answer}".encode())
    return digest.hexdigest()


@cache
def _weights() -> str:
    """The shipped weights' hash; they do not change while a bench runs."""
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(MODEL_DIR.glob("*.safetensors")))).hexdigest()


def commit() -> str:
    """The commit of the checkout, marked where files differ from it."""
    try:
        git = ("git", "-C", str(ROOT))
        head = subprocess.run((*git, "rev-parse", "HEAD"), capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run((*git, "status", "--porcelain"), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def type_of(vlm: Vlm) -> str:
    """The type that the model computes in, as it goes into a record."""
    return type_name(vlm.placement.dtype)
