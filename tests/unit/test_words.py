"""Visual tokens are drawn half way to the words that they are near, as the formula says and as the file keeps them."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from training.common import write_shards
from training.world import COLUMNS, ROWS
from vlm.embedded import part, read_shards
from vlm.words import MARKER_BIAS, MARKER_SHARPNESS, PLACE_SHARE, SHARE, SHARPNESS, NearWords, place_tokens, thirds


def _words(count: int = 12, width: int = 48) -> NearWords:
    generator = torch.Generator().manual_seed(0)
    places, marker, directions = normalize(torch.randn(count + 7, width, generator=generator), dim=-1).split([6, 1, count])
    mean = torch.randn(width, generator=generator)
    return NearWords(directions=directions, mean=mean, norm=torch.tensor(3.0), marker=marker[0], places=places)


def test_tokens_are_half_themselves_and_half_the_expected_word_with_the_marker():
    words, x = _words(), torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    out = words(x)
    for token, found in zip(x.flatten(0, 1), out.flatten(0, 1), strict=True):
        unit = (token - words.mean) / (token - words.mean).norm()
        said = sum(p * w for p, w in zip(torch.softmax(SHARPNESS * words.directions @ unit, 0), words.directions, strict=True))
        said = said + words.marker / (1 + torch.exp(-MARKER_SHARPNESS * words.marker @ unit - MARKER_BIAS))
        wanted = (1 - SHARE) * token + SHARE * (words.mean + words.norm * said)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_token_that_is_a_word_stays_that_word_but_for_the_marker_and_a_faint_one_comes_nearer():
    words = _words()
    pure = words.mean + words.norm * words.directions
    added = words(pure) - pure
    torch.testing.assert_close(added, (added @ words.marker)[:, None] * words.marker, atol=1e-3, rtol=0)
    noise = torch.randn(12, 48, generator=torch.Generator().manual_seed(2))
    faint = pure + 0.35 * noise
    before, after = ((normalize(t - words.mean, dim=-1) * words.directions).sum(-1) for t in (faint, words(faint)))
    assert bool((after > before).all())


def test_the_marker_stands_where_the_tower_is_sure_of_it():
    words = _words()
    word = words.directions[:1] - (words.directions[:1] @ words.marker)[:, None] * words.marker
    plain, marked = (words(words.mean + words.norm * normalize(word + share * words.marker, dim=-1)) for share in (0.0, 0.6))
    there = [float(((x - words.mean) @ words.marker)[0] / words.norm) for x in (plain, marked)]
    assert there[0] < 0.05 and there[1] > 0.6


def test_gradients_reach_the_tower_through_both_halves():
    words, x = _words(), torch.randn(3, 48, requires_grad=True)
    words(x).square().sum().backward()
    assert bool((x.grad.abs().sum(-1) > 0).all()) and not list(words.parameters())


def test_half_precision_stays_half():
    assert _words().bfloat16()(torch.randn(3, 48).bfloat16()).dtype is torch.bfloat16


def test_words_survive_the_file(tmp_path):
    words, x = _words(), torch.randn(9, 48)
    write_shards(tmp_path, "trimlens", {f"words.{name}": tensor for name, tensor in words.named_buffers()})
    found = NearWords(**part(read_shards(tmp_path, "trimlens")[0], "words"))
    torch.testing.assert_close(found(x), words(x), atol=2e-2, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 12), (3, 3), (1, 5)])
def test_every_token_says_the_thirds_that_it_stands_in_whatever_it_is(rows, columns):
    words, x = _words(), torch.randn(rows, columns, 48)
    added = (words.placed(x) - x) / (PLACE_SHARE * words.norm)
    for row in range(rows):
        for column in range(columns):
            high, wide = ((at + 0.5) / count for at, count in ((row, rows), (column, columns)))
            expected = words.places[int(3 * high)] + words.places[3 + int(3 * wide)]
            if min(abs(3 * at - edge) for at in (high, wide) for edge in (1, 2)) > 0.3:
                torch.testing.assert_close(added[row, column], expected, atol=0.2, rtol=0)
    torch.testing.assert_close(thirds(rows).sum(-1), torch.ones(rows))
    assert (len(ROWS), len(COLUMNS)) == (3, 3)


@pytest.mark.parametrize("named", [True, False])
def test_the_tower_places_every_image_of_a_ragged_list(named):
    words, (a, b) = _words(), (torch.randn(2, 3, 48), torch.randn(4, 2, 48))
    tower = SimpleNamespace(spatial_merge_size=2, merger=(None, words))
    grid = torch.tensor([[1, 4, 6], [1, 8, 4]])
    output = SimpleNamespace(pooler_output=torch.cat([a.flatten(0, 1), b.flatten(0, 1)]))
    found = place_tokens(tower, () if named else (None, grid), {"grid_thw": grid} if named else {}, output).pooler_output
    torch.testing.assert_close(found, torch.cat([words.placed(image).flatten(0, 1) for image in (a, b)]))
