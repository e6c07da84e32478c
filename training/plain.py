"""Plain questions with SmolLM2's own answers, so that learning to see does not unlearn talking.

``python -m training.plain`` asks the untouched language model and writes plain.json; stage 2 mixes the pairs in behind pictures
that have nothing to do with them. Every fifth question is held out for tests.
"""

import json
from functools import cache
from pathlib import Path

import torch

from training.questions import Question, with_article

FILE = Path(__file__).with_name("plain.json")
COUNTRIES = """France Germany Italy Spain Japan Egypt Canada Mexico Brazil India China Greece Norway Sweden Poland Kenya Peru Chile
    Cuba Turkey Ireland Portugal Austria Denmark Finland Russia Australia""".split()
THINGS = """cat dog horse guitar rocket mountain river book clock bridge computer violin tree island castle whale robot
    garden""".split()
TOPICS = """the sea, winter, music, friendship, the moon, cooking, a long journey, rain, books, space, learning, old houses,
    football, birds"""
OTHERS = """Hello! | How are you? | Who are you? | Thank you! | What can you do? | Tell me a joke. | What is the largest planet?
    | Who wrote Hamlet? | What is water made of? | How many days are in a week? | Why is the sky blue?
    | What is gravity? | Name three colors. | Name three fruits. | What is a noun? | What is a verb? | Say good morning in French.
    | Give me a word that rhymes with cat. | What do bees make? | How do birds fly? | What is the fastest animal?
    | What is the opposite of hot? | What is photosynthesis? | What is the boiling point of water?"""
LONGEST = 48


def prompts() -> list[str]:
    """All plain questions."""
    return [
        *(f"What is the capital of {country}?" for country in COUNTRIES),
        *(f"What is {with_article(thing)} used for?" for thing in THINGS),
        *(f"What is {with_article(thing)}?" for thing in THINGS),
        *(f"Write a short sentence about {topic}." for topic in map(str.strip, TOPICS.split(","))),
        *map(str.strip, OTHERS.split("|")),
    ]


@cache
def pairs(held_out: bool = False) -> tuple[Question, ...]:
    """Questions with SmolLM2's answers: four fifths for training, the rest held out."""
    rows = json.loads(FILE.read_text())
    return tuple(Question("plain", text, answer) for index, (text, answer) in enumerate(rows) if (index % 5 == 4) == held_out)


@torch.inference_mode()
def main() -> None:
    """Asks SmolLM2, greedily; an answer that does not end within LONGEST tokens stops at its last full sentence."""
    from vlm import embedded, prefill  # noqa: PLC0415  (only to make the file)

    model, prompter = embedded.open_text_model()
    asked, rows = prompts(), []
    for start in range(0, len(asked), 16):
        batch = asked[start : start + 16]
        prompt = prefill.build(model, [(prompter.prompt(text, []), []) for text in batch])
        out = model.generate(**prompt.kwargs(), do_sample=False, max_new_tokens=LONGEST)
        for text, row in zip(batch, out[:, prompt.input_ids.shape[1] :].tolist(), strict=True):
            ends = [i for i, token in enumerate(row) if token in model.generation_config.eos_token_id]
            answer = prompter.decode(row[: ends[0]] if ends else row).strip()
            if not ends:
                answer = answer[: answer.rfind(".") + 1]
            if answer:
                rows.append([text, answer])
    FILE.write_text(json.dumps(rows, indent=0) + "\n")
    print(len(rows), rows[0])


if __name__ == "__main__":
    main()
