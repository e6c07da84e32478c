"""Writes the trained weights as the app loads them. ``python -m training.export``: runs/lm.pt -> assets/model/*.safetensors

The tower and the adapters go out in float16; the adapters' scale is folded into ``lora_b``. ``--checkpoint`` writes the newest
tower and adapters to training/checkpoints/ instead, which is committed between two sessions on different machines (``--go-on`` and
``--from-shipped`` read it).
"""

import argparse
import json

import torch

from training import common
from training.train_lm import RANK, SCALE
from vlm import embedded


def export_checkpoint() -> None:
    """runs/tower.pt and runs/lm.pt, what there is of them -> training/checkpoints/, in float16, without optimisers."""
    language, tower = common.load("lm"), common.load("tower")
    if not (language or tower):
        raise SystemExit("runs/tower.pt is missing: run `python -m training.train_tower` first.")
    if tower:
        state = {f"{part}.{name}": tensor for part in ("visual", "heads") for name, tensor in tower[part].items()}
        _write("tower", state, tower)
    if language:
        _write("lm", language["language"], language)


def _write(stem: str, state: dict[str, torch.Tensor], saved: dict) -> None:
    about = {"step": str(saved["step"]), "minutes": f"{minutes_of(saved):.1f}"}
    print(stem, common.write_shards(common.CHECKPOINTS, stem, state, about), about)


def minutes_of(saved: dict) -> float:
    """Training time of a checkpoint's stage over all sessions."""
    return saved["before"] + saved["spent"] / 60


def main() -> None:
    """Exports the newest checkpoint and what is known about it."""
    saved = common.load("lm")
    if saved is None:
        raise SystemExit("runs/lm.pt is missing: run `make train` first.")
    text, prompter = embedded.open_text_model()
    words = common.words_of(text.model.language_model, prompter)
    state = {f"visual.{name}": tensor for name, tensor in saved["visual"].items()}
    state |= {f"words.{name}": tensor for name, tensor in vars(words).items()}
    for name, tensor in saved["language"].items():
        if not name.startswith("probe."):
            state[name] = tensor * SCALE if name.endswith(".lora_b") else tensor
    size = common.write_shards(embedded.MODEL_DIR, "trimlens", state)
    card = {"name": embedded.NAME, "steps": saved["step"], "minutes": round(minutes_of(saved), 1), "adapter_rank": RANK}
    (embedded.MODEL_DIR / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card | {"bytes": size}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", action="store_true", help="to training/checkpoints, for another machine to go on from")
    export_checkpoint() if parser.parse_args().checkpoint else main()
