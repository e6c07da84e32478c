"""The trained scorer: its collapsed form, what its loader takes and refuses, and a training that changes nothing but the scorer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pruning.registry import METHODS, SCORERS, get_method
from pruning.scorers import NegCosMean, ScorerWeights, Trained
from pruning.scorers.trained import FILE, load
from pruning.tokens import VisualTokens
from tests.unit.tiny import QUESTION, assert_close, noise
from training import common, packing, train_scorer, world
from training.train_lm import Student, load_shipped
from training.train_scorer import Threshold, log_soft_top_k
from vlm import embedded
from vlm.errors import UserError
from vlm.open import _find_scorer


def state(width: int = 16, hidden: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A random scorer by the published names."""
    parts = {f"{side}_proj.weight": torch.randn(hidden, width) for side in "qk"}
    return {name: part.to(dtype) for name, part in (parts | {f"{side}_proj.bias": torch.randn(hidden) for side in "qk"}).items()}


@pytest.fixture
def saved(tmp_path):
    """Writes tensors and returns the file."""

    def save(tensors):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / FILE)
        return tmp_path / FILE

    return save


def test_the_collapsed_form_is_the_mean_over_all_pairs():
    hidden, width, count = 144, 576, 256
    weights = ScorerWeights(*(torch.randn(s, dtype=torch.float64) for s in ((hidden, width), (hidden,)) * 2))
    x = torch.randn(3, count, width, dtype=torch.float64)
    q, k = x @ weights.q_weight.T + weights.q_bias, x @ weights.k_weight.T + weights.k_bias
    pairs = (q @ k.mT).mean(-1) / hidden**0.5
    scale = float(pairs.abs().max())
    assert_close(weights.score(x) / scale, pairs / scale, 1e-13, "collapsed and N x N form, relative to the largest score")
    assert_close(weights.score(x[1]), weights.score(x)[1], 1e-10 * scale, "alone and in a batch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("prefix", ["", "visual.importance_scorer.", "module._orig_mod."])
def test_published_files_are_read_in_float32(saved, dtype, prefix):
    tensors = state(dtype=dtype)
    weights = load(saved({prefix + name: tensor for name, tensor in tensors.items()}))
    assert weights.width == 16
    assert weights.q_weight.dtype == torch.float32
    assert torch.equal(weights.q_weight, tensors["q_proj.weight"].float())
    assert torch.equal(weights.k_bias, tensors["k_proj.bias"].float())
    tokens = VisualTokens(torch.randn(12, 16), (3, 4), weights=weights)
    assert METHODS["idpruner"].with_(scorer="trained")(tokens).importance.max() == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_proj.weight": torch.zeros(6, 15)}, r"two weights \[h, D\].*k_proj.weight \(6, 15\)"),
        ({"q_proj.bias": torch.zeros(5)}, r"two biases \[h\].*q_proj.bias \(5,\)"),
        ({"norm.weight": torch.ones(16)}, "also holds norm.weight; .* another network"),
        ({f"layers.{i}": torch.ones(1) for i in range(9)}, "layers.3 and 5 more"),
        ({"k_proj.bias": None}, "lacks k_proj.bias"),
        ({"q_proj.weight": None}, "lacks q_proj.weight"),
        ({"k_proj.bias": torch.full((6,), float("nan"))}, "k_proj.bias hold nan"),
        ({"k_proj.bias": torch.zeros(6, dtype=torch.int64)}, "one floating type"),
    ],
)
def test_what_is_no_scorer_is_refused_by_name(saved, change, message):
    tensors = {name: tensor for name, tensor in (state() | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message) as error:
        load(saved(tensors))
    assert "scorer.safetensors" in str(error.value)


def test_what_is_no_safetensors_file_is_refused_unread(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file none\.safetensors"):
        load(tmp_path / "none.safetensors")
    torch.save(state(), tmp_path / "pickle.bin")
    with pytest.raises(ValueError, match=r"pickle\.bin is not a whole safetensors file"):
        load(tmp_path / "pickle.bin")


def test_tokens_of_another_width_and_without_weights_are_refused():
    weights = ScorerWeights(*(state()[f"{side}_proj.{part}"] for side in "qk" for part in ("weight", "bias")))
    with pytest.raises(ValueError, match="trained for tokens of width 16; these have 8"):
        VisualTokens(torch.randn(4, 8), (2, 2), weights=weights)
    with pytest.raises(ValueError, match="needs the weights: pass VisualTokens"):
        SCORERS["trained"](VisualTokens(torch.randn(4, 8), (2, 2)))


def test_idpruner_takes_the_trained_scorer_where_the_model_has_one():
    assert get_method("idpruner", trained=True).scorer == Trained() == SCORERS["trained"]
    assert get_method("idpruner", trained=True).note == ""
    assert get_method("idpruner").scorer == NegCosMean()
    assert "training-free" in get_method("idpruner").note
    assert get_method("topk", trained=True) is METHODS["topk"]


def test_a_model_scores_with_its_own_scorer_or_says_why_not(vlm, saved):
    image = vlm.encode(noise(1))
    method = get_method("idpruner", trained=True)
    with pytest.raises(UserError, match="tiny has no trained scorer: choose another importance"):
        vlm.rank(image, QUESTION, method)
    with pytest.raises(UserError, match=r"scorer.safetensors was trained for tokens of width 16; those of tiny have 64"):
        vlm.use_scorer(saved(state()))
    assert vlm.scorer is None
    path = saved(state(64))
    vlm.use_scorer(path)
    expected = load(path).score(image.features)
    ranking = vlm.rank(image, QUESTION, method)
    assert ranking.importance.argmax() == expected.argmax()
    assert ranking.order[0] == expected.argmax()


def test_a_broken_scorer_stops_nobody_who_does_not_ask_for_it(vlm, tmp_path, saved):
    vlm.name = str(tmp_path)
    (tmp_path / FILE).write_bytes(b"broken")
    _find_scorer(vlm)
    assert vlm.scorer is None
    vlm.rank(vlm.encode(noise(1)), QUESTION, METHODS["idpruner"])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        vlm.rank(vlm.encode(noise(1)), QUESTION, METHODS["topk"].with_(scorer="trained"))
    saved(state(64))
    _find_scorer(vlm)
    assert vlm.scorer.width == 64


def test_soft_top_k_sums_to_k_and_becomes_the_cut():
    scores = torch.randn(3, 40)
    for k, softness in ((1, 0.5), (10, 0.5), (10, 0.05), (39, 1.0)):
        sums = log_soft_top_k(scores, k, softness).exp().sum(1)
        assert_close(sums, torch.full((3,), float(k)), 1e-4, f"sum of w, K = {k}")
    hard = torch.zeros(3, 40).scatter_(1, scores.topk(10, 1).indices, 1.0)
    assert_close(log_soft_top_k(scores, 10, 1e-5).exp(), hard, 1e-3, "w at softness 1e-5 and the cut")
    assert_close(log_soft_top_k(7 * scores + 3, 10, 0.5), log_soft_top_k(scores, 10, 0.5), 1e-3, "log w of rescaled scores")
    assert torch.isfinite(log_soft_top_k(torch.zeros(1, 8), 3, 0.05)).all()
    with pytest.raises(ValueError, match="between 0 and 40"):
        Threshold.apply(scores, 40)


def test_the_gradient_of_soft_top_k_is_exact():
    scores = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: Threshold.apply(s, 3), scores)
    assert torch.autograd.gradcheck(lambda s: torch.sigmoid(s + Threshold.apply(s, 3)), scores)
    assert torch.autograd.gradcheck(lambda s: log_soft_top_k(s, 3, 0.3), scores)
    far = (scores.detach() * 1e4).requires_grad_()
    Threshold.apply(far, 3).sum().backward()
    assert_close(far.grad.sum(1), -torch.ones(2, dtype=torch.float64), 1e-9, "sum of dt/ds where every sigmoid is saturated")


def test_budgets_fall_from_mild_to_hard_and_are_mixed_at_the_end():
    mild, hard = train_scorer.KEEP
    early = [train_scorer.budget(p, 0) for p in (0.0, 0.2, 0.4, 0.5999)]
    assert early[0] == mild and early == sorted(early, reverse=True) and early[-1] < 1.01 * hard
    late = [train_scorer.budget(0.8, step) for step in range(200)]
    assert hard <= min(late) < 1.2 * hard and 0.8 * mild < max(late) <= mild
    assert train_scorer.budget(0.8, 5) == late[5]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty folder for checkpoints, one small image a batch, and no training of the model: it is the shipped one."""
    monkeypatch.setattr(common, "RUNS", tmp_path)
    monkeypatch.setattr(packing, "VISUAL_TOKENS", 64)
    monkeypatch.setattr(packing, "PAIRS", 2)
    monkeypatch.setattr(world, "SIZES", ((224, 224),))
    monkeypatch.setattr(world, "SIZE_WEIGHTS", (1.0,))
    return tmp_path


@pytest.mark.slower
def test_the_training_resumes_exports_and_leaves_the_model_alone(runs, monkeypatch):
    student = train_scorer.frozen_student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    monkeypatch.setattr(train_scorer, "frozen_student", lambda compiled: student)
    train_scorer.train(60, batches=1)
    first = common.load("scorer")
    train_scorer.train(60, batches=1)
    second = common.load("scorer")
    assert (first["step"], second["step"]) == (1, 2)
    change = (second["scorer"]["k_proj.weight"] - first["scorer"]["k_proj.weight"]).abs().max()
    assert change > 0, "the second run must go on learning"
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items()), "the model has changed"
    assert all(parameter.grad is None for parameter in student.parameters())
    exported = load(runs / "scorer.safetensors")
    assert exported.width == 576
    assert torch.equal(exported.q_weight, second["scorer"]["q_proj.weight"].half().float())
    assert load_file(runs / "scorer.safetensors")["q_proj.weight"].dtype == torch.float16
    _a_token_of_weight_zero_is_a_pruned_token(student)


@pytest.mark.slower
def test_merged_adapters_answer_as_those_beside_their_layers(runs):
    student = Student().requires_grad_(False).eval()
    load_shipped(student)
    batch = packing.Batch(**next(iter(packing.Examples(student.prompter, 0, train_scorer.SEED))))
    tokens, mask = torch.randn(1, 8, 8, 576) * 0.1, packing.attention_mask(batch.segment)
    beside, _ = student.answers(batch, tokens, mask)
    student.merge_adapters()
    merged, _ = student.answers(batch, tokens, mask)
    assert not [name for name, _ in student.named_parameters() if "lora" in name]
    assert_close(merged, beside, 1e-4, "loss with merged adapters")


@pytest.mark.slower
def test_the_page_sees_the_visual_tokens_of_the_training():
    student = Student().requires_grad_(False).eval()
    load_shipped(student)
    pictures = [noise(seed, 224, 336) for seed in range(2)]
    _, _, trained = student.see(torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]))
    inputs = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=10**6)(images=pictures, return_tensors="pt")
    with torch.no_grad():
        page = embedded.open_model()[0].get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    # The words of the file are in float16.
    assert_close(trained.flatten(1, 2), torch.stack(list(page)), 2e-3, "visual tokens, with words, marker and places")


def _a_token_of_weight_zero_is_a_pruned_token(student):
    """The training's objective at the hard end, against the loss of a prompt from which the tokens are really gone."""
    raw = next(iter(packing.Examples(student.prompter, 0, train_scorer.SEED)))
    batch, keep = packing.Batch(**raw), torch.arange(64) % 5 == 0
    start = packing.first_visual(batch)
    tokens = torch.randn(1, 8, 8, 576) * 0.1
    mask = packing.attention_mask(batch.segment)
    received = torch.zeros(1, 1, 1, batch.ids.shape[1])
    received[..., start : start + 64] = torch.where(keep, 0.0, -1e4)
    soft, _ = student.answers(batch, tokens, mask + received)
    stays = torch.ones(batch.ids.shape[1], dtype=torch.bool)
    stays[start : start + 64] = keep
    parts = {name: getattr(batch, name)[..., stays] for name in ("ids", "segment", "labels", "weights", "positions")}
    pruned = replace(batch, **parts)
    hard, _ = student.answers(pruned, tokens[:, None].flatten(2, 3)[:, :, keep], packing.attention_mask(pruned.segment))
    assert_close(soft, hard, 1e-4, "loss with log w = -10000 and without the tokens")


def test_a_scorer_starts_near_the_training_free_score():
    width = 576
    background, things = torch.rand(100, 1) * torch.randn(width), torch.randn(100, width) * 0.3
    tokens = VisualTokens(background + things, (10, 10))
    start = train_scorer.Scorer(width)(tokens.features[None])[0].detach()
    alike = torch.corrcoef(torch.stack([start, NegCosMean().score(tokens)]))[0, 1]
    assert alike > 0.85, alike
