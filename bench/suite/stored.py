"""Scores of the suite that outlive a run: what was answered once is read again, by every bench that asks for it.

``python -m bench.suite.stored`` gathers what runs/suite holds in one file to commit, with a score for every question, so that a
long table can be answered over several sittings.
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from bench.suite.evaluate import Setting, run
from bench.suite.tasks import SEED, Item, items
from pruning.registry import METHODS
from pruning.scorers.trained import FILE
from training.common import RUNS
from vlm.device import type_name
from vlm.embedded import MODEL_DIR
from vlm.model import Vlm
from vlm.words import MARKER_BIAS, MARKER_SHARPNESS, PLACE_SHARE, PLACE_SHARPNESS, SHARE, SHARPNESS

ROOT = Path(__file__).resolve().parents[2]
SCORES = ROOT / "assets/results/scores.jsonl"
MODEL = "trimlens-*.safetensors"
_COMMITS: set[str] = set()
BLOCK = 50  # questions that are kept together; runs share the blocks that they have whole


def answered(vlm: Vlm, task: str, asked: list[Item], settings: list[Setting], committed: bool = False) -> dict[Setting, np.ndarray]:
    """Scores [questions] of every setting, read from runs/suite where they were written before.

    committed: those of SCORES, too; what stands there was answered by the same weights, perhaps on another machine.
    """
    parts = []
    for start in range(0, len(asked), BLOCK):
        parts.append(_block(vlm, task, asked[start : start + BLOCK], settings, committed))
        print(f"{task}: {start + len(parts[-1][settings[0]])} of {len(asked)}", file=sys.stderr, flush=True)
    return {setting: np.concatenate([part[setting] for part in parts]) for setting in settings}


def _block(vlm: Vlm, task: str, asked: list[Item], settings: list[Setting], committed: bool) -> dict[Setting, np.ndarray]:
    questions = _digest(asked)
    keys = {setting: _key(questions, setting, type_of(vlm)) for setting in settings}
    files = {setting: RUNS / "suite" / f"{task.replace(' ', '-')}-{key}.json" for setting, key in keys.items()}
    known = {setting: json.loads(file.read_text()) for setting, file in files.items() if file.exists()}
    if committed:
        rows = _committed(SCORES)
        known = {setting: rows[key] for setting, key in keys.items() if key in rows} | known
    missing = [setting for setting in settings if setting not in known]
    for setting, found in run(vlm, asked, missing).items() if missing else ():
        scores = [int(score) if score in (0, 1) else round(score, 4) for score in found.tolist()]
        row = {"key": keys[setting], "task": task, "questions": questions, "dtype": type_of(vlm), "commit": commit()}
        said = {name: value for name, value in asdict(setting).items() if value is not None}
        known[setting] = row | {"setting": said, "scores": scores}
        files[setting].parent.mkdir(parents=True, exist_ok=True)
        files[setting].write_text(json.dumps(known[setting]))
    _COMMITS.update(known[setting]["commit"] for setting in settings)
    return {setting: np.array(known[setting]["scores"]) for setting in settings}


def gather(limit: int = 500) -> int:
    """Puts what runs/suite holds of the suite's blocks into SCORES; what other weights answered, or was asked before, goes.

    Returns how many rows there are.
    """
    rows = _rows(SCORES) + [json.loads(file.read_text()) for file in sorted((RUNS / "suite").glob("*.json"))]
    places = {}
    for task in {row["task"]: None for row in rows}:
        asked = items(task, limit, SEED)
        blocks = [asked[start : start + BLOCK] for start in range(0, limit, BLOCK)]
        places |= {_digest(block): index for index, block in enumerate(blocks)}
    fit = {row["key"]: row for row in rows if row["questions"] in places and row["key"] == _key_of(row)}
    ordered = sorted(fit.values(), key=lambda row: (row["task"], str(row["setting"]), places[row["questions"]]))
    SCORES.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in ordered))
    return len(ordered)


def answered_at() -> list[str]:
    """The commits at which the answers were given that this process has read or made."""
    return sorted(_COMMITS)


def _rows(path: Path) -> list[dict]:
    """The lines of a file like SCORES."""
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


@cache
def _committed(path: Path) -> dict[str, dict]:
    return {row["key"]: row for row in _rows(path)}


def _weights(setting: Setting) -> tuple[str, str]:
    """Of the model, and of its scorer where the setting has it: another scorer changes nothing for the rest."""
    scorer = setting.method in METHODS and "weights" in setting.configured().needs
    return _hash(MODEL), _hash(FILE) if scorer else ""


def _key_of(row: dict) -> str:
    """The key that a row would have now."""
    return _key(row["questions"], Setting(**row["setting"]), row["dtype"])


def _key(questions: str, setting: Setting, dtype: str) -> str:
    """Other weights, another number type, other questions and another parameter of a method have other scores.

    A change of a method's code has, too, but no key knows it: then its rows must go from runs/suite and SCORES.
    """
    words = SHARE, SHARPNESS, MARKER_SHARPNESS, MARKER_BIAS, PLACE_SHARE, PLACE_SHARPNESS
    method = setting.configured() if setting.method in METHODS else None
    parts = method and (method.scorer, method.selector)
    return hashlib.sha256(repr((_weights(setting), words, dtype, questions, setting, parts)).encode()).hexdigest()[:20]


def _digest(asked: list[Item]) -> str:
    """Of the pictures, questions and answers: a change of the world makes other questions of the same seed."""
    digest = hashlib.sha256()
    for item in asked:
        digest.update(item.picture.tobytes() + f"{item.question} {item.answer}".encode())
    return digest.hexdigest()[:16]


@cache
def _hash(names: str) -> str:
    """The hash of shipped weights; they do not change while a bench runs."""
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(MODEL_DIR.glob(names)))).hexdigest()[:16]


@cache
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


if __name__ == "__main__":
    print(f"{SCORES}: {gather()} rows")
