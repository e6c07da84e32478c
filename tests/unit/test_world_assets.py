"""The drawn world's material: every noun, font and photograph is there and can be told apart."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tokenizers import Tokenizer

from bench.suite import tasks
from training import fonts, icons, photos, world
from vlm import text_weights


@pytest.mark.parametrize("artist", icons.ARTISTS)
def test_every_noun_is_drawn(artist):
    drawn = icons.sheet(artist)
    assert len(drawn) == len(icons.names()) >= 260
    covered = {noun: (cell[..., 3] > 128).mean() for noun, cell in drawn.items()}
    assert {noun: share for noun, share in covered.items() if share < 0.03} == {}
    assert len({cell.tobytes() for cell in drawn.values()}) == len(drawn), "two nouns with the same picture"
    assert icons.icon("cat", artist, 60).shape == (60, 60, 4)


def test_more_artists_draw_for_training_only():
    for artist in icons.EXTRAS:
        drawn = icons.sheet(artist)
        assert len(drawn) > 100 and not set(icons.MISNAMED.get(artist, ())) & set(drawn)
        assert min((cell[..., 3] > 128).mean() for cell in drawn.values()) > 0.03
    assert world.TRAINING.artists_of("cat") == [*icons.ARTISTS, *icons.EXTRAS]
    others = [artist for artist in icons.EXTRAS if artist != "noto-v1"]
    held_out = "noto's is held out, and what was drawn after it"
    assert world.TRAINING.artists_of("airplane") == ["twemoji", "openmoji", "fluent-emoji-flat", *others], held_out
    assert tasks.SEEN.artists_of("cat") == list(icons.ARTISTS) and tasks.UNSEEN.artists_of("airplane") == ["noto"]


def test_every_noun_is_one_token():
    path = text_weights.cache_dir() / text_weights.TOKENIZER
    if not path.exists():
        pytest.skip("no tokenizer here: run `make weights`")
    tokenizer = Tokenizer.from_file(str(path))
    assert [noun for noun in icons.names() if len(tokenizer.encode(f" {noun}").ids) != 1] == []


def test_a_tenth_of_the_drawings_is_held_out():
    kept = {noun: [artist for artist in icons.ARTISTS if icons.held_out(noun, artist)] for noun in icons.names()}
    assert max(map(len, kept.values())) == 1, "no noun loses more than one artist"
    assert 0.07 < sum(map(len, kept.values())) / len(kept) / len(icons.ARTISTS) < 0.13
    assert {artist for artists in kept.values() for artist in artists} == set(icons.ARTISTS)
    assert (kept["airplane"], kept["crab"], kept["banana"]) == (["noto"], ["twemoji"], []), "the split must never move"


@pytest.mark.parametrize("name", [*fonts.names(), *fonts.held_out()])
def test_every_font_draws_letters_and_digits(name):
    def ink(letter: str) -> np.ndarray:
        picture = Image.new("L", (60, 60))
        ImageDraw.Draw(picture).text((30, 30), letter, font=fonts.font(name, 32), fill=255, anchor="mm")
        return np.asarray(picture)

    drawn = {letter: ink(letter) for letter in "0123456789lWaz$%"}
    assert min(np.count_nonzero(picture > 128) for letter, picture in drawn.items()) > 8
    # A font without a glyph draws its empty box for each.
    assert len({picture.tobytes() for picture in drawn.values()}) == len(drawn)


def test_fonts_of_tests_are_not_fonts_of_training():
    assert len(fonts.held_out()) == 3 and not set(fonts.held_out()) & set(fonts.names())
    assert not [name for name in fonts.names() if name.removesuffix("-bold") in fonts.held_out()]


def test_photographs():
    assert len(photos.photos()) >= 24
    for photo in photos.photos():
        assert photo.dtype == np.uint8 and photo.shape[2] == 3
        assert min(photo.shape[:2]) == 448 and max(photo.shape[:2]) <= 640, photo.shape
        assert photo.std() > 8
    large = [path.name for path in photos.FOLDER.iterdir() if path.stat().st_size > 60_000]
    assert large == []
