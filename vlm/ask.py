"""``python -m vlm.ask IMAGE QUESTION --method idpruner --prune 0.75``: one question at the prompt, timed."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from pruning.registry import METHODS, SCORERS, get_method
from pruning.tokens import keep_count
from vlm.embedded import NAME
from vlm.errors import UserError
from vlm.images import open_image
from vlm.model import Answer, last
from vlm.open import MODELS, open_vlm


def run(arguments: argparse.Namespace) -> Answer:
    """Opens, encodes, ranks and answers."""
    vlm = open_vlm(arguments.model)
    print(f"{vlm.name}: {vlm.placement.reason}", file=sys.stderr)
    image = vlm.encode(open_image(arguments.image))
    if arguments.scorer_file is not None:
        vlm.use_scorer(arguments.scorer_file)
    method = get_method(arguments.method, trained=vlm.scorer is not None).with_(
        lam=arguments.lam, scorer=arguments.scorer, seed=arguments.seed
    )
    if method.key != "none":
        note = method.note if arguments.scorer is None else ""
        print(f"{method.label} ({method.paper}), prunes {method.where}. {note}", file=sys.stderr)
    kept = keep_count(len(image.features), arguments.prune)
    rankings = None if arguments.method == "none" else [vlm.rank(image, arguments.question, method, kept)]
    return last(vlm.answer([image], arguments.question, rankings, arguments.prune, arguments.max_new_tokens))


def main(argv: list[str] | None = None) -> int:
    """Prints the answer, the times and one JSON line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("question")
    parser.add_argument("--method", default="idpruner", choices=list(METHODS))
    parser.add_argument("--prune", type=float, default=0.75, help="fraction of the visual tokens that goes (0.75)")
    parser.add_argument("--lam", type=float, help="lambda of idpruner and topk-farthest (0.5)")
    parser.add_argument("--seed", type=int, help="of random (0)")
    parser.add_argument("--scorer", choices=list(SCORERS), help="importance (the trained one for idpruner where there is one)")
    parser.add_argument("--scorer-file", type=Path, help="a trained scorer of this model's token width, as .safetensors")
    parser.add_argument("--model", default=NAME, help=f"one of {', '.join(MODELS)}, or a folder")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    try:
        answer = run(parser.parse_args(argv))
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    t = answer.timings
    print(answer.text)
    print(
        f"{answer.kept_tokens} of {answer.visual_tokens} visual tokens | vision {t.vision * 1e3:.0f} ms, scoring "
        f"{t.scoring * 1e3:.1f} ms, selection {t.selection * 1e3:.1f} ms, prefill {t.prefill * 1e3:.0f} ms, "
        f"{len(t.decode)} decode steps {sum(t.decode) * 1e3:.0f} ms"
    )
    record = asdict(answer)
    del record["traces"]
    record["timings"] |= {"first_token": t.first_token, "total": t.total}
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
