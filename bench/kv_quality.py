"""What reading the KV cache with fewer bits does to a model's words: ``python -m bench.kv_quality [--quick]``.

Decode-time teacher forcing on the embedded model. A context is prefilled once with the default cache, whose K and V every
other cache then stores its own way; the tokens that follow are forced one at a time through all of them, and each one's logits
are compared with the default cache's (float32, every bit); a step of all caches is one step of the model (bench.kv_abreast). A
prefill-only perplexity would never touch a decode path.

Text: files that ship with Debian and Python (bench.texts), 768 tokens of context, 128 forced. Images: held-out scenes of
448 x 448 (256 visual tokens), the right answer forced. Rows of one batch are equally long, so nothing is padded.

bits_saved: 1 - bytes read / bytes of the same K and V as float16, over all layers and decode steps. Bytes read are those of
planes, steps, scales, per-head constants and the newest whole tokens (16 bits each; at most 63, until a block is full, as in
AlignedKV's code). bits: per number, without steps, scales and constants. top1: how often the likeliest token is the default
cache's; kld: mean KL divergence from the default cache's distribution, in nats; perplexity: of the forced tokens.

paper has the thresholds of 4, 8 and 11 exponent steps; paper_three_widths, as in the paper's text, leaves nothing unread.
certified allows an error of 0.02 per head's output, certified_0.05, certified_0.1 and certified_0.2 (which bench.kv_attention
times) of so much; exact reads all 16 bits of halves. The uniform caches keep the same newest tokens whole.

A full run takes hours and goes on where it was stopped (runs/kv_quality). --quick stops after 34 seconds: its few tokens
show that it works, and no more. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from transformers import Cache, DynamicCache

from bench.kv_abreast import NAME, Abreast
from bench.kv_rounding import Fp8, Int8, Truncated, rounded_cache
from bench.suite.tasks import SEED
from bench.texts import windows
from kvquant.alignment import THREE_WIDTHS
from kvquant.attention import reading
from kvquant.cache import KVCache, Setting
from kvquant.kernels import kernel_reason, warm_up
from kvquant.modes import Certified, Exact, Paper
from training import questions, world
from vlm import device, embedded
from vlm.model import Vlm
from vlm.open import embedded_processor
from vlm.prefill import PrunedPrompt, VisualInput, build
from vlm.tokenizer import END_OF_TEXT, IM_END

ROOT = Path(__file__).resolve().parent.parent
QUICK_SECONDS = 34.0
WINDOW = 0

_MODES = {
    "exact": Exact(),
    "paper": Paper(),
    "paper_three_widths": Paper(THREE_WIDTHS),
    "certified": Certified(0.02),
    "certified_0.05": Certified(0.05),
    "certified_0.1": Certified(0.1),
    "certified_0.2": Certified(0.2),
}
OURS = {name: Setting(mode, halves=name == "exact", window=WINDOW, traced=1) for name, mode in _MODES.items()}
UNIFORM = {
    "uniform_8": lambda: Truncated(8),
    "uniform_12": lambda: Truncated(12),
    "uniform_13": lambda: Truncated(13),
    "fp8": Fp8,
    "int8": Int8,
}
MODES = (*OURS, *UNIFORM)
BENCH = ("abreast", "quality", "rounding")


@dataclass
class Tally:
    """Sums over decoded tokens (agree, kld, nll) and over decode steps (bytes, bits, numbers of K and V)."""

    tokens: int = 0
    agree: int = 0
    kld: float = 0.0
    nll: float = 0.0
    bytes: int = 0
    bits: float = 0.0
    numbers: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def summary(self) -> dict:
        """What the JSON line says of it."""
        return {
            "bits_saved": round(1 - self.bytes / (2 * self.numbers), 4),
            "bits": round(self.bits / self.numbers, 3),
            "top1": round(self.agree / self.tokens, 5),
            "kld": float(f"{self.kld / self.tokens:.3g}"),
            "perplexity": round(math.exp(self.nll / self.tokens), 4),
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class Batch:
    """Equally long prompts and what follows them: ``forced`` int64 [B, S + 1]; the first ``lengths[b]`` of a row count."""

    source: str
    names: list[str]
    prompt: PrunedPrompt
    forced: torch.Tensor
    lengths: torch.Tensor


def new_cache(mode: str, model) -> Cache:
    """An empty cache of one of ``MODES``."""
    return KVCache(model.config, OURS[mode]) if mode in OURS else rounded_cache(model.config, UNIFORM[mode], WINDOW)


def read_by(cache: Cache, numbers: int) -> tuple[int, float]:
    """(bytes, bits of numbers) of the decode step just done, ``numbers`` being all of K and V."""
    if not isinstance(cache, KVCache):
        bytes_read, bits = zip(*(layer.read() for layer in cache.layers), strict=True)
        return sum(bytes_read), sum(bits)
    traces = cache.traces[-1]
    return sum(t.bytes_read for t in traces), sum(t.mean_bits for t in traces) * numbers / len(traces)


@torch.inference_mode()
def force(model, batch: Batch, modes: tuple[str, ...], deadline: float = math.inf) -> dict[str, Tally]:
    """Forces the batch through the default cache ("default") and all ``modes`` side by side, up to the deadline."""
    base, tallies = DynamicCache(), {mode: Tally() for mode in ("default", *modes)}
    with reading(model, NAME):
        model(**batch.prompt.kwargs(), past_key_values=base, logits_to_keep=1)
        caches: dict[str, Cache] = {"default": base} | {mode: new_cache(mode, model) for mode in modes}
        for mode in modes:
            for index, layer in enumerate(base.layers):
                caches[mode].update(layer.keys, layer.values, index)
        every = Abreast(list(caches.values()))
        for step in range(batch.forced.shape[1] - 1):
            place = (batch.prompt.position_ids[..., -1:] + 1 + step).repeat(1, len(caches), 1)
            token, target = batch.forced[:, step : step + 1], batch.forced[:, step + 1]
            alive = step + 1 < batch.lengths
            all_logits = model(token.repeat(len(caches), 1), position_ids=place, past_key_values=every).logits[:, -1]
            reference = None
            for (mode, cache), logits in zip(caches.items(), all_logits.chunk(len(caches)), strict=True):
                # float64: differences of 1e-7 would drown in float32 sums over 49152 tokens.
                found = logits[alive].double().log_softmax(-1)
                reference = found if reference is None else reference
                k = base.layers[0].keys
                numbers = 2 * k.numel() * len(base.layers)
                size = k.element_size()
                read = (size * numbers, 8.0 * size * numbers) if cache is base else read_by(cache, numbers)
                tallies[mode] += Tally(
                    len(found),
                    int((found.argmax(-1) == reference.argmax(-1)).sum()),
                    float((reference.exp() * (reference - found)).sum()),
                    -float(found.gather(-1, target[alive, None]).sum()),
                    *read,
                    numbers,
                )
            if time.monotonic() > deadline:
                break
    return tallies


def text_batches(vlm: Vlm, count: int, batch: int, context: int, steps: int) -> Iterator[Batch]:
    """``count`` batches of text."""
    found = windows(vlm.prompter.encode, context + steps + 1, count * batch)
    for start in range(0, len(found), batch):
        names, ids = zip(*found[start : start + batch], strict=True)
        prompt = build(vlm.model, [(row[:context], []) for row in ids])
        forced = torch.tensor([row[context:] for row in ids], device=prompt.input_ids.device)
        yield Batch("text", list(names), prompt, forced, torch.full((batch,), steps + 1, device=forced.device))


def image_batches(vlm: Vlm, count: int, batch: int) -> Iterator[Batch]:
    """``count`` batches of questions about held-out scenes, of equally long prompts with answers of more than three tokens."""
    waiting: dict[int, list] = {}
    index = 0
    while count:
        rng = world.rng_for(SEED, index)
        scene = world.draw(rng, (448, 448))
        question = questions.ask(rng, scene, questions.KINDS[index % len(questions.KINDS)])
        index += 1
        answer = [*vlm.prompter.encode(question.answer), IM_END] if question else []
        if len(answer) <= 3:
            continue
        same = waiting.setdefault(len(vlm.prompter.encode(question.text)), [])
        same.append((f"scene {index - 1}", scene, question.text, answer))
        if len(same) == batch:
            yield _image_batch(vlm, same)
            same.clear()
            count -= 1


def _image_batch(vlm: Vlm, rows: list) -> Batch:
    names, scenes, asked, answers = zip(*rows, strict=True)
    images = [vlm.encode(Image.fromarray(scene.image)) for scene in scenes]
    ids = [vlm.prompter.prompt(q, [len(i.features)]) for q, i in zip(asked, images, strict=True)]
    with torch.inference_mode():
        prompt = build(vlm.model, [(row, [VisualInput(i.features, i.grid_thw)]) for row, i in zip(ids, images, strict=True)])
    longest = max(map(len, answers))
    forced = torch.tensor([a + [END_OF_TEXT] * (longest - len(a)) for a in answers], device=prompt.input_ids.device)
    return Batch("images", list(names), prompt, forced, torch.tensor([len(a) for a in answers], device=forced.device))


def open_model() -> Vlm:
    """The embedded model, without the page's warm-up."""
    model, prompter = embedded.open_model()
    placement = device.choose(big=False)
    return Vlm(embedded.NAME, model.to(placement.device, placement.dtype), prompter, embedded_processor(), placement)


def fingerprint(arguments: argparse.Namespace) -> str:
    """Changes with the settings, the code that stores and reads, this bench, and the model."""
    digest = hashlib.sha256(repr((arguments.batch, arguments.context, arguments.steps, MODES, embedded.card())).encode())
    for path in [*sorted((ROOT / "kvquant").rglob("*.py")), *(Path(__file__).with_name(f"kv_{name}.py") for name in BENCH)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def full(vlm: Vlm, arguments: argparse.Namespace) -> dict[str, dict[str, Tally]]:
    """Source -> mode -> sums; every finished batch is a line of a file in runs/, and is not done again."""
    path = ROOT / "runs" / "kv_quality" / f"{fingerprint(arguments)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["source"], *line["names"]): line["tallies"] for line in lines}
    totals: dict[str, dict[str, Tally]] = {}
    batches = [text_batches(vlm, arguments.texts, arguments.batch, arguments.context, arguments.steps)]
    batches.append(image_batches(vlm, arguments.images, arguments.batch))
    began = time.monotonic()
    for number, batch in enumerate((b for source in batches for b in source), 1):
        tallies = done.get((batch.source, *batch.names))
        if tallies is None:
            tallies = {mode: asdict(tally) for mode, tally in force(vlm.model, batch, MODES).items()}
            with path.open("a") as file:
                file.write(json.dumps({"source": batch.source, "names": batch.names, "tallies": tallies}) + "\n")
        add(totals, batch.source, {mode: Tally(**tally) for mode, tally in tallies.items()})
        every = f"{number} of {arguments.texts + arguments.images} batches, {time.monotonic() - began:.0f} s"
        print(f"  {every}, {path.relative_to(ROOT)}", file=sys.stderr, flush=True)
    return totals


def quick(vlm: Vlm, began: float) -> dict[str, dict[str, Tally]]:
    """A few tokens of one batch of text and one of questions."""
    totals: dict[str, dict[str, Tally]] = {}
    sources = ((text_batches(vlm, 1, 4, 512, 128), 0.65), (image_batches(vlm, 1, 4), 1.0))
    for batches, share in sources:
        for batch in batches:
            add(totals, batch.source, force(vlm.model, batch, MODES, began + share * QUICK_SECONDS))
    return totals


def add(totals: dict[str, dict[str, Tally]], source: str, tallies: dict[str, Tally]) -> None:
    """Adds a batch to the sums of its source."""
    sums = totals.setdefault(source, {mode: Tally() for mode in tallies})
    for mode, tally in tallies.items():
        sums[mode] += tally


def main(argv: list[str] | None = None) -> int:
    """Runs, prints a table per source and the JSON line."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"stop after {QUICK_SECONDS:.0f} seconds")
    parser.add_argument("--texts", type=int, default=20, help="batches of text (20)")
    parser.add_argument("--images", type=int, default=12, help="batches of image questions (12)")
    parser.add_argument("--batch", type=int, default=8, help="rows side by side (8)")
    parser.add_argument("--context", type=int, default=768, help="tokens of text before the forced ones (768)")
    parser.add_argument("--steps", type=int, default=128, help="decode steps of a text (128)")
    parser.add_argument(
        "--out", type=Path, help="where the JSON line is also written; the page reads assets/results/kv_quality.json"
    )
    arguments = parser.parse_args(argv)
    vlm = open_model()
    print(f"{vlm.name}, {vlm.placement.reason}", file=sys.stderr, flush=True)
    # Compiling would take longer than the quick measurement.
    print(kernel_reason() if arguments.quick else warm_up(), file=sys.stderr, flush=True)
    totals = quick(vlm, began) if arguments.quick else full(vlm, arguments)
    both = {mode: sum((by_mode[mode] for by_mode in totals.values()), Tally()) for mode in ("default", *MODES)}
    for source, tallies in {**totals, "all": both}.items():
        print(f"{source}: {both['default'].tokens if source == 'all' else tallies['default'].tokens} decoded tokens per cache")
        for mode, tally in tallies.items():
            s = tally.summary()
            print(
                f"    {mode:15} {s['bits']:6.2f} bits, {s['bits_saved']:7.1%} of fp16's bytes saved, top-1 {s['top1']:8.3%}, "
                f"KLD {s['kld']:.2e}, perplexity {s['perplexity']:.4f}"
            )
    record = {mode: both[mode].summary() | {s: t[mode].summary() for s, t in totals.items()} for mode in MODES}
    if arguments.out:
        arguments.out.write_text(json.dumps(record) + "\n")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
