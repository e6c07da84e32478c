"""All methods on a model: the right number is kept, merged tokens stand where their targets stood, a batch equals its rows."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from bench.suite import evaluate
from bench.suite.evaluate import Setting
from pruning.registry import METHODS
from tests.unit.tiny import QUESTION, assert_close, noise, random_scorer, tiny_vlm
from vlm import ask, prefill
from vlm.model import last, visual_input


@pytest.fixture(scope="module")
def tiny(model):
    vlm = tiny_vlm(model)
    vlm.scorer = random_scorer()
    return vlm


@pytest.fixture(scope="module")
def pair(tiny):
    """Two images of different sizes: 8 x 8 and 8 x 12 tokens."""
    return [tiny.encode(noise(1)), tiny.encode(noise(2, 336, 224))]


@pytest.mark.parametrize("key", METHODS)
def test_every_method_answers_about_one_and_two_images(tiny, pair, key):
    rankings = [tiny.rank(image, QUESTION, METHODS[key], len(image.features) // 4) for image in pair]
    for ranking, image in zip(rankings, pair, strict=True):
        again = tiny.rank(image, QUESTION, METHODS[key], len(image.features) // 4)
        assert np.array_equal(ranking.order, again.order), "not deterministic"
    for count in (1, 2):
        answer = last(tiny.answer(pair[:count], QUESTION, rankings[:count], 0.75, 3))
        assert (answer.kept_tokens, answer.visual_tokens) == [(16, 64), (40, 160)][count - 1]
        assert answer.method == key and answer.done and answer.timings.prefill > 0


def test_a_missing_scorer_is_a_sentence(pair, model):
    with pytest.raises(Exception, match="tiny has no trained scorer: choose another importance or method"):
        tiny_vlm(model).rank(pair[0], QUESTION, METHODS["visionselector"])


def test_a_ranking_for_another_budget_is_refused(tiny, pair):
    ranking = tiny.rank(pair[0], QUESTION, METHODS["hiprune"], 16)
    with pytest.raises(ValueError, match="chose for 16 tokens; rank again to keep 32"):
        last(tiny.answer(pair[:1], QUESTION, [ranking], 0.5, 1))


def test_merged_tokens_stand_at_the_places_of_their_targets(tiny, pair):
    image, ranking = pair[0], tiny.rank(pair[0], QUESTION, METHODS["visionzip"], 16)
    keep = ranking.keep(16)
    prompt = tiny.prompt([image], QUESTION, [keep], [ranking])
    plain = tiny.prompt([image], QUESTION, [keep])
    assert torch.equal(prompt.position_ids, plain.position_ids)
    assert torch.equal(prompt.input_ids, plain.input_ids)
    moved = (prompt.features[0] - image.features[keep]).abs().amax(1) > 1e-6
    assert int(moved.sum()) == METHODS["visionzip"].selector.split(16)[1] == 2
    # The reference: an image whose features are the merged ones from the start, pruned without merging.
    changed = image.features.clone()
    changed[keep] = ranking.merged
    ids = tiny.prompter.prompt(QUESTION, [64])
    with torch.no_grad():
        expected = tiny.model(**prefill.build(tiny.model, [(ids, [prefill.VisualInput(changed, image.grid_thw, keep)])]).kwargs())
        ours, unmerged = (tiny.model(**p.kwargs()).logits for p in (prompt, plain))
    assert_close(ours, expected.logits, 1e-6, "logits of merged tokens")
    assert (ours - unmerged).abs().max() > 0.01, "merging changes nothing, so the comparison proves nothing"


@pytest.mark.parametrize("keep", [None, np.arange(3)])
def test_merged_rows_must_match_the_kept_tokens(pair, keep):
    with pytest.raises(ValueError, match="one row for every kept token"):
        prefill.VisualInput(pair[0].features, pair[0].grid_thw, keep, pair[0].features[:2])


def test_a_smaller_picture_has_the_budget_even_below_the_model_s_least(tiny, pair):
    for image, kept, grid in ((pair[0], 16, (4, 4)), (pair[0], 6, (2, 2)), (pair[1], 24, (4, 6)), (pair[0], 64, (8, 8))):
        small = tiny.smaller(image, kept)
        assert small.grid == grid and small.features.shape == (grid[0] * grid[1], 64)
        assert small is tiny.smaller(image, kept)
    with torch.no_grad():
        assert_close(tiny.smaller(pair[0], 64).features, pair[0].features, 1e-5, "features at 100%")
    answer = last(tiny.answer(pair[:1], QUESTION, [tiny.rank(pair[0], QUESTION, METHODS["down-sampling"], 16)], 0.75, 1))
    whole = last(tiny.answer(pair[:1], QUESTION, max_new_tokens=1))
    assert whole.prompt_tokens - answer.prompt_tokens == 48
    assert answer.timings.vision == tiny.smaller(pair[0], 16).vision_s


@pytest.mark.parametrize("key", [key for key, method in METHODS.items() if method.after == 0])
def test_a_batch_equals_its_single_rows(tiny, pair, key):
    rows = []
    for image, question in zip(pair, (QUESTION, "And the cat?"), strict=True):
        ranking = tiny.rank(image, question, METHODS[key], 16)
        ids = tiny.prompter.prompt(question, [len(image.features)])
        rows.append((ids, [visual_input(image, ranking.keep(16), ranking)]))
    with torch.no_grad():
        together = tiny.model(**prefill.build(tiny.model, rows).kwargs()).logits[:, -1]
        alone = torch.cat([tiny.model(**prefill.build(tiny.model, [row]).kwargs()).logits[:, -1] for row in rows])
    assert_close(together, alone, 1e-4, f"{key}: logits in a batch and alone")


@dataclass
class Listener:
    """An item of the suite that notes what was said."""

    picture: Image.Image
    question: str
    said: list[str]

    def score(self, text: str) -> float:
        self.said.append(text)
        return 0.0


def test_the_suite_asks_every_method_as_the_page_does(tiny, monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_NEW_TOKENS", 4)
    item = Listener(noise(5), QUESTION, [])
    settings = [Setting(key, 0.75) for key in METHODS]
    result = evaluate.run(tiny, [item], settings)
    assert all(np.isfinite(values).all() for values in result.values())
    image = tiny.encode(item.picture)
    expected = [
        last(tiny.answer([image], QUESTION, [tiny.rank(image, QUESTION, METHODS[key], 16)], 0.75, 4)).text for key in METHODS
    ]
    assert sorted(item.said) == sorted(expected)


@pytest.mark.parametrize("key", METHODS)
def test_every_method_can_be_asked_for_at_the_prompt(tiny, key, tmp_path, monkeypatch, capsys):
    noise(3).save(tmp_path / "noise.png")
    monkeypatch.setattr(ask, "open_vlm", lambda name: tiny)
    arguments = [str(tmp_path / "noise.png"), QUESTION, "--method", key, "--prune", "0.75", "--max-new-tokens", "2"]
    assert ask.main(arguments) == 0
    out, err = capsys.readouterr()
    assert f"{64 if key == 'none' else 16} of 64 visual tokens" in out
    assert (f"prunes {METHODS[key].where}" in err) == (key != "none")
