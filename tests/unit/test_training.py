"""Both training stages run, checkpoint and resume; Muon orthogonalises; shards hold everything."""

import numpy as np
import pytest
import torch

from training import common, export, muon, packing, train_lm, train_tower, world
from vlm import embedded


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty folder for checkpoints, small batches."""
    monkeypatch.setattr(common, "RUNS", tmp_path)
    monkeypatch.setattr(train_tower, "TOKENS", 256)
    monkeypatch.setattr(packing, "VISUAL_TOKENS", 64)
    monkeypatch.setattr(packing, "PAIRS", 2)
    monkeypatch.setattr(world, "SIZES", ((224, 224),))
    monkeypatch.setattr(world, "SIZE_WEIGHTS", (1.0,))
    return tmp_path


@pytest.mark.slower
def test_both_stages_run_and_resume(runs):
    train_tower.train(60, batches=1, compiled=False, letters=True)
    tower = common.load("tower")
    assert tower["step"] == 1 and tower["spent"] == 0 and tower["before"] > 0 and not tower["optimizers"]
    train_tower.train(60, batches=1, compiled=False)
    train_tower.train(60, batches=1, compiled=False)
    train_tower.train(60, batches=1, compiled=False, letters=True)
    tower = common.load("tower")
    assert tower["step"] == 3 and tower["spent"] > 0, "letters are learned once, and then all goes on where it was"
    train_lm.train(60, batches=1)
    first = common.load("lm")
    train_lm.train(60, batches=1)
    second = common.load("lm")
    assert (first["step"], second["step"]) == (1, 2)
    name = "layers.0.self_attn.q_proj.lora_b"
    assert (second["language"][name] - first["language"][name]).abs().max() > 0, "the second run must go on learning"
    moved = (first["visual"]["patch_embed.proj.weight"] - tower["visual"]["patch_embed.proj.weight"]).abs().max()
    assert 0 < moved < 1e-2, "the tower goes on, slowly"
    for part in ("visual", "heads"):
        newest = common.load("tower")[part]
        assert all(torch.equal(tensor, newest[name]) for name, tensor in second[part].items()), "stage 1 goes on from there"


@pytest.mark.slower
def test_a_new_machine_goes_on_from_the_committed_tower(runs, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINTS", runs / "committed")
    train_tower.train(60, batches=1, compiled=False, resume=True)
    export.export_checkpoint()
    first = common.load("tower")
    (runs / "tower.pt").unlink()
    train_tower.train(60, batches=0, compiled=False, resume=True)
    second = common.load("tower")
    assert (first["step"], second["step"]) == (1, 1) and second["before"] >= 0
    for part in ("visual", "heads"):
        furthest = max((first[part][name] - second[part][name]).abs().max().item() for name in first[part])
        assert furthest < 4e-3, f"float16 loses {furthest}"
    train_lm.train(60, batches=1)
    export.export_checkpoint()
    before = common.load("lm")
    (runs / "lm.pt").unlink()
    train_lm.train(60, batches=0, from_shipped=True)
    after = common.load("lm")
    assert after["step"] == before["step"] == 1
    name = "layers.0.self_attn.q_proj.lora_b"
    assert (before["language"][name] - after["language"][name]).abs().max() < 1e-4


def test_every_class_has_a_direction_of_its_own():
    model, prompter = embedded.open_text_model()
    embedding = model.model.language_model.embed_tokens.weight.detach()
    found = common.word_directions(embedding, prompter.encode).directions
    alike = (found @ found.T).fill_diagonal_(-1)
    first = world.classes().index("text 0")
    print(f"two classes: {alike.max():.3f}, two digits: {alike[first : first + 10, first : first + 10].max():.3f}")
    assert alike.max() < 0.97 and alike[first : first + 10, first : first + 10].max() < 0.9
    with pytest.raises(ValueError, match="can only be one"):
        common.word_directions(embedding, lambda text: [1, 2])


def test_shards_are_small_and_hold_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "SHARD_BYTES", 300)
    state = {f"layer {index}": torch.randn(50) for index in range(7)}
    size = common.write_shards(tmp_path, "lm", state, {"step": "3"})
    files = list(tmp_path.glob("*"))
    assert len(files) == 3 and size == sum(file.stat().st_size for file in files)
    found, about = embedded.read_shards(tmp_path, "lm")
    assert about == {"step": "3"} and set(found) == set(state)
    assert all((found[name] - state[name]).abs().max() < 1e-2 for name in state)
    assert embedded.read_shards(tmp_path, "tower") == ({}, {})


def test_orthogonalised_updates_have_singular_values_near_one():
    for shape in ((3, 24, 40), (2, 40, 24)):
        values = torch.linalg.svdvals(muon.orthogonalise(torch.randn(shape)))
        assert values.min() > 0.4 and values.max() < 1.4, (values.min(), values.max())


def test_gaps_keep_the_order_of_rows_and_columns_and_nothing_else():
    rng = np.random.default_rng(0)
    gaps = torch.cat([packing.gapped(rng, 16).diff() for _ in range(200)])
    assert packing.gapped(rng, 1).tolist() == [0]
    assert set(gaps.tolist()) == {1, 2, 3, 4}, "in order, and never far apart"
    assert 0.6 < (gaps == 1).float().mean() < 0.9, "most neighbours stay neighbours, as letters of a word must"


def test_what_follows_a_gapped_picture_stands_behind_it():
    _, prompter = embedded.open_text_model()
    scene = world.draw_any(np.random.default_rng(3), (224, 224))
    pairs = [packing.pairs_of(np.random.default_rng(4), scene)]
    plain, apart = (packing.pack(prompter, [scene], pairs, at) for at in (None, (torch.arange(8) * 3, torch.arange(8) * 2)))
    start = packing.first_visual(plain)
    assert torch.equal(plain.ids, apart.ids) and torch.equal(plain.positions[:, :, :start], apart.positions[:, :, :start])
    visual = (apart.positions - plain.positions)[:, 0, start : start + 64].unflatten(1, (8, 8))
    assert torch.equal(visual[1, :, 0], 2 * torch.arange(8)) and torch.equal(visual[2, 0], torch.arange(8)) and not visual[0].any()
    used = apart.segment[0] >= 0
    after = (apart.positions - plain.positions)[:, 0, start + 64 :][:, used[start + 64 :]]
    assert after.unique().tolist() == [14], "7 rows, each 2 further"
