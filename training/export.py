"""Writes the trained weights as the app loads them. ``python -m training.export``: runs/lm.pt -> assets/model/*.safetensors

The tower and the adapters go out in float16; the adapters' scale is folded into ``lora_b``. ``--checkpoint`` writes the newest
tower and adapters to training/checkpoints/ instead, which is committed between two sessions on different machines (``--go-on`` and
``--from-shipped`` read it).
"""

import argparse
import json

import torch
from safetensors.torch import save_file

from training import common
from training.train_lm import LANGUAGE_CHECKPOINT, RANK, SCALE
from training.train_tower import CHECKPOINT
from vlm.embedded import MODEL_DIR, NAME

SHARD_BYTES = 9_500_000


def export_checkpoint() -> None:
    """runs/lm.pt, or else runs/tower.pt -> training/checkpoints/: tower and heads, and adapters, in float16, without optimisers."""
    language, tower = common.load("lm"), common.load("tower")
    saved = language or tower
    if saved is None:
        raise SystemExit("runs/tower.pt is missing: run `python -m training.train_tower` first.")
    state = {f"{part}.{name}": tensor.half().contiguous() for part in ("visual", "heads") for name, tensor in saved[part].items()}
    CHECKPOINT.parent.mkdir(exist_ok=True)
    spent = {"step": str((tower or saved)["step"]), "minutes": f"{minutes_of(tower or saved):.1f}"}
    save_file(state, CHECKPOINT, spent)
    print(CHECKPOINT, CHECKPOINT.stat().st_size, spent)
    if language:
        spent = {"step": str(language["step"]), "minutes": f"{minutes_of(language):.1f}"}
        state = {name: tensor.half().contiguous() for name, tensor in language["language"].items()}
        save_file(state, LANGUAGE_CHECKPOINT, spent)
        print(LANGUAGE_CHECKPOINT, LANGUAGE_CHECKPOINT.stat().st_size, spent)


def minutes_of(saved: dict) -> float:
    """Training time of a checkpoint's stage over all sessions."""
    return saved["before"] + saved["spent"] / 60


def main() -> None:
    """Exports the newest checkpoint and what is known about it."""
    saved = common.load("lm")
    if saved is None:
        raise SystemExit("runs/lm.pt is missing: run `make train` first.")
    state = {f"visual.{name}": tensor for name, tensor in saved["visual"].items()}
    for name, tensor in saved["language"].items():
        if not name.startswith("probe."):
            state[name] = tensor * SCALE if name.endswith(".lora_b") else tensor
    MODEL_DIR.mkdir(parents=True, exist_ok=True)
    for old in MODEL_DIR.glob("trimlens-*.safetensors"):
        old.unlink()
    for number, shard in enumerate(_shards({k: v.half().contiguous() for k, v in state.items()}), 1):
        save_file(shard, MODEL_DIR / f"trimlens-{number}.safetensors")
    card = {"name": NAME, "steps": saved["step"], "minutes": round(minutes_of(saved), 1), "adapter_rank": RANK}
    (MODEL_DIR / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card | {"bytes": sum(f.stat().st_size for f in MODEL_DIR.glob("trimlens-*.safetensors"))}))


def _shards(state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    shards, size = [{}], 0
    for name in sorted(state):
        bytes_ = state[name].numel() * state[name].element_size()
        if size + bytes_ > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = state[name]
        size += bytes_
    return shards


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", action="store_true", help="to training/checkpoints, for another machine to go on from")
    export_checkpoint() if parser.parse_args().checkpoint else main()
