"""The training code: its tower is the library's tower, and its questions have the answers that they claim."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.unit.tiny import assert_close, noise, tiny_model
from training import charts, icons, lettering, pictures, questions, tower, world
from training.questions import Question, ask, is_right

quick = settings(deadline=None, max_examples=30, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("height", "width"), [(224, 336), (448, 224)])
def test_the_training_forward_is_the_library_s_tower(height, width):
    model = tiny_model(0, gain=1.0)
    pictures = [noise(seed, width, height) for seed in range(2)]
    batch = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    with torch.no_grad():
        ours, _ = tower.forward(model.model.visual, tower.normalise(batch))
    inputs = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=10**6)(images=pictures, return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, height // 14, width // 14]] * 2
    with torch.no_grad():
        library = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    assert ours.shape == (2, height // 28, width // 28, 64)
    assert_close(ours.flatten(1, 2), torch.stack(list(library)), 1e-5, f"visual tokens at {height} x {width}")


def test_the_training_forward_gives_gradients_to_every_parameter():
    visual = tiny_model(1).model.visual
    pictures = tower.normalise(torch.randint(0, 256, (1, 112, 224, 3), dtype=torch.uint8))
    tower.forward(visual, pictures)[0].square().mean().backward()
    without = [name for name, p in visual.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []


def test_a_size_that_is_no_multiple_of_the_window_is_refused(model):
    with pytest.raises(ValueError, match="multiples of 112 pixels a side, got 224 x 252"):
        tower.forward(model.model.visual, torch.zeros(1, 3, 224, 252))


def scene_of(seed: int) -> tuple[world.Scene, np.random.Generator]:
    rng = world.rng_for(seed, 0)
    return world.draw_any(rng, world.SIZES[seed % len(world.SIZES)]), rng


@quick
@given(seeds)
def test_a_scene_follows_from_its_seed(seed):
    (first, rng), (second, again) = scene_of(seed), scene_of(seed)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.labels, second.labels)
    assert first.items == second.items
    for kind in questions.KINDS:
        assert ask(rng, first, kind) == ask(again, second, kind)


def test_scenes_of_other_indexes_and_splits_differ():
    images = [world.draw(world.rng_for(*key), (224, 224)).image for key in ((0, 0), (0, 1), (1, 0))]
    assert not any(np.array_equal(a, b) for a, b in zip(images, images[1:] + images[:1], strict=True))


@quick
@given(seeds)
def test_labels_name_only_what_is_in_the_scene(seed):
    scene, _ = scene_of(seed)
    height, width = scene.image.shape[:2]
    assert scene.image.dtype == np.uint8
    assert scene.labels.shape == (height // 28, width // 28)
    there = {world.class_index()[item.name] for item in scene.items}
    for text in (text.text for text in scene.texts):
        pairs = [first + second for first, second in itertools.pairwise(text) if (first + second).isdigit()]
        there |= {world.class_index()[lettering.class_name(part)] for part in (*text.split(), *text, *pairs)}
    if scene.chart and scene.chart.colors:
        there |= {world.class_index()[f"{color} square"] for color in scene.chart.colors}
    assert scene.chars.shape == (*scene.labels.shape, lettering.SLOTS)
    assert scene.chars.min() >= lettering.UNREADABLE and scene.chars.max() < len(lettering.ALPHABET)
    written = {c.lower() for text in scene.texts for c in text.text}
    assert {lettering.ALPHABET[i] for i in np.unique(scene.chars) if i > 0} <= written
    assert set(np.unique(scene.labels).tolist()) <= there | {world.BACKGROUND, world.IGNORE}
    for item in scene.items:
        assert 0 < item.x < 1 and 0 < item.y < 1
        assert item.name in world.classes()


def test_a_cell_of_two_digits_has_a_class_of_its_own():
    sheet = lettering.Sheet(np.zeros((56, 224, 3), np.float32))
    font = lettering.fonts.names()[0]
    for text, size, x, y in (("46", 20, 2, 14), ("64", 44, 58, 14), ("$7", 16, 142, 14), ("B2b", 12, 2, 42), ("March", 16, 62, 42)):
        sheet.write(text, font, size, x, y, np.full(3, 255, np.float32))
    labels = sheet.finish(np.zeros((2, 8), np.int64), world.class_index(), world.IGNORE)
    found = [[world.classes()[label] if label >= 0 else "" for label in row] for row in labels]
    assert [found[0][column] for column in (0, 2, 3, 5)] == ["text 46", "text 6", "text 4", "text 7"], found
    assert (found[1][0], found[1][2]) == ("text 2", "text march"), found


def ninth(item: world.Item) -> str:
    """Where an item is, written anew."""
    row = "top" if item.y < 1 / 3 else "bottom" if item.y > 2 / 3 else ""
    column = "left" if item.x < 1 / 3 else "right" if item.x > 2 / 3 else ""
    return f"{row} {column}".strip() or "center"


def bare(text: str) -> str:
    """("An owl." -> "owl")."""
    words = text.rstrip(".").lower().split()
    return " ".join(words[1:] if words[0] in ("a", "an", "some") else words)


def named(text: str, candidates: list[str] | tuple[str, ...]) -> str:
    """The longest candidate that the text mentions."""
    return max((c for c in candidates if f" {c}" in f" {text.lower()}"), key=len)


@quick
@given(seeds)
def test_answers_follow_from_the_scene(seed):
    scene, rng = scene_of(seed)
    names = [item.name for item in scene.items]
    places = sorted({world.place_name(r, c) for r in range(3) for c in range(3)})
    for kind in questions.KINDS:
        asked = ask(rng, scene, kind)
        if asked is None:
            continue
        assert asked.kind == kind
        assert asked.text.endswith(("?", "."))
        assert asked.answer.endswith(".") and not asked.answer[0].islower()
        assert is_right(asked, asked.answer)
        if kind == "name":
            assert names == [bare(asked.answer)]
        elif kind == "list":
            things = asked.answer.rstrip(".").replace(" and ", ", ").split(", ")
            assert sorted(map(bare, things)) == sorted(names)
        elif kind == "count":
            assert questions.NUMBERS.index(bare(asked.answer)) == len(names)
        elif kind == "exist":
            assert (named(asked.text.removesuffix("?"), world.things()) in names) == (asked.answer == "Yes.")
        elif kind == "place":
            where = named(asked.text.rstrip("?"), places)
            answered = [] if asked.answer == "Nothing." else [bare(asked.answer)]
            assert [i.name for i in scene.items if ninth(i) == where] == answered
        elif kind == "where":
            name = named(asked.text.rstrip("?"), names)
            assert [ninth(i) for i in scene.items if i.name == name] == [named(asked.answer.rstrip("."), places)]
        elif kind == "color":
            shape = named(asked.text.rstrip("?"), world.SHAPES)
            assert [i.color for i in scene.items if i.name.endswith(f" {shape}")] == [bare(asked.answer)]
        elif kind == "shape":
            color = named(asked.text.rstrip("?"), list(world.COLORS))
            assert [i.name.split()[1] for i in scene.items if i.color == color] == [bare(asked.answer)]
        elif kind == "read":
            written = {text.text.lower() for text in scene.texts}
            assert set(asked.answer.lower().removeprefix("it says ").rstrip(".").split(", ")) <= written
        elif kind == "chart":
            known = {
                *map(str.lower, scene.chart.labels),
                *map(str, scene.chart.values),
                *(scene.chart.colors or ()),
                *questions.NUMBERS,
            }
            assert asked.answer.lower().removeprefix("it is ").rstrip(".") in known
        elif kind == "document":
            assert asked.answer in {answer for _, answer in scene.document.facts}


@quick
@given(seeds)
def test_varied_pictograms_are_other_drawings_of_the_same_thing(seed):
    rng, artists = np.random.default_rng(seed), list(icons.ARTISTS)
    plain = [icons.icon("cat", artist, 64)[:, ::flip].copy() for artist in artists for flip in (1, -1)]
    drawn = [pictures.picture(rng, "cat", 64, artists, True) for _ in range(40)]
    known = [any(np.array_equal(one, other) for other in plain) for one in drawn]
    print(f"{sum(known)} of 40 as they were drawn")
    assert 6 <= sum(known) <= 34
    for one in drawn:
        assert one.shape == (64, 64, 4) and one.dtype == np.uint8 and (one[..., 3] > 127).mean() > 0.1
    grey = pictures._hue(0.7) @ np.ones(3)
    assert np.allclose(grey, 1) and np.allclose(pictures._hue(0.0), np.eye(3))


@quick
@given(seeds)
def test_relations_hold_in_the_scene(seed):
    rng = world.rng_for(seed, 1)
    scene = world.draw(rng, (448, 448), 3, words=0)
    asked = ask(rng, scene, "relation")
    if asked is None:
        return
    words = next(words for words in questions.RELATION if f" {words} " in asked.text)
    axis, sign = questions.RELATION[words]
    place = {item.name: (item.y, item.x)[axis] * sign for item in scene.items}
    before, after = asked.text.rstrip("?").split(f" {words} the ")
    if asked.answer in ("Yes.", "No."):
        assert (place[before.removeprefix("Is the ")] > place[after]) == (asked.answer == "Yes.")
    else:
        assert [name for name in place if name != after and place[name] > place[after]] == [bare(asked.answer)]


def test_what_a_chart_shows_is_what_its_answers_say():
    chart = charts.Chart("Sales", ("tea", "milk", "rice"), (30, 10, 20), ("red", "blue", "red"), True)
    said = {charts.ask(np.random.default_rng(seed), chart) for seed in range(200)}
    assert ("How much is milk?", "10.") in said
    assert ("Which is the highest?", "It is tea.") in said and ("Which is the lowest?", "It is milk.") in said
    assert ("What color is the bar of milk?", "Blue.") in said and ("How many bars are in the chart?", "Three.") in said
    assert not any("color" in text and "tea" in text for text, _ in said), "two red bars, but never asked about"
    assert charts.read(np.random.default_rng(0), chart)[1] == "It shows tea 30, milk 10, rice 20."


def test_a_follow_up_knows_what_it_is():
    rng = np.random.default_rng(0)
    scene = world.draw(rng, (224, 224), 1, words=0)
    first, second = (
        Question("name", "What is this?", questions.sentence(questions.with_article(scene.items[0].name))),
        Question("count", "How many?", "One."),
    )
    turns = [questions.follow_up(rng, scene, first, second) for _ in range(30)]
    assert all(turn.history == ((first.text, first.answer),) for turn in turns)
    assert {turn.text for turn in turns} == {"Where is it?", "How many?"} or world.place(scene.items[0]) is None


def test_every_kind_of_question_is_asked_sometimes():
    scenes = [scene_of(seed) for seed in range(120)]
    for kind in questions.KINDS:
        assert any(ask(rng, scene, kind) for scene, rng in scenes), kind


def test_an_empty_scene_allows_no_question():
    nothing = (np.zeros(shape, np.int64) for shape in ((1, 1), (1, 1, 4), (2, 2)))
    empty = world.Scene(np.zeros((28, 28, 3), np.uint8), (), *nothing)
    assert [ask(np.random.default_rng(0), empty, kind) for kind in questions.KINDS] == [None] * len(questions.KINDS)


@pytest.mark.parametrize(
    ("kind", "right", "answer", "expected"),
    [
        ("name", "A cat.", "A cat.", True),
        ("name", "A cat.", "cat", True),
        ("name", "A cat.", "The  CAT!", True),
        ("name", "A cat.", "A caterpillar.", False),
        ("name", "A cat.", "A cat and a dog.", False),
        ("name", "A cat.", "", False),
        ("name", "A red circle.", "Red circle", True),
        ("name", "A red circle.", "A circle", False),
        ("name", "Some grapes.", "grapes", True),
        ("where", "At the top left.", "top left", True),
        ("where", "At the top left.", "In the top left.", True),
        ("where", "At the top left.", "At the top.", False),
        ("count", "Three.", "three", True),
        ("count", "Three.", "Four.", False),
        ("read", "It says Monday.", "monday", True),
        ("read", "It says Monday.", "It is Monday.", True),
        ("read", "It says Monday.", "It says.", False),
        ("exist", "Yes.", "yes", True),
        ("exist", "Yes.", "No.", False),
        ("list", "A cat, a dog and an owl.", "An owl, a dog and a cat.", True),
        ("list", "A cat, a dog and an owl.", "An owl, a dog, and a cat", True),
        ("list", "A cat, a dog and an owl.", "A cat and a dog.", False),
        ("list", "A cat and a cat.", "A cat.", False),
        ("list", "A sandwich and a hand.", "a hand, a sandwich", True),
        ("list", "A cat and a dog.", "A cat, a dog, a dog.", False),
    ],
)
def test_scoring(kind, right, answer, expected):
    assert is_right(Question(kind, "?", right), answer) is expected


def test_articles_fit_their_nouns():
    articles = {"owl": "an owl", "cat": "a cat", "orange star": "an orange star"}
    articles |= {name: f"some {name}" for name in icons.UNCOUNTED}
    assert {name: questions.with_article(name) for name in articles} == articles
    assert set(icons.names()) >= icons.UNCOUNTED, "a plural that no scene holds"
    assert questions.listed(["cat"]) == "a cat"
    assert questions.listed(["cat", "owl", "orange star"]) == "a cat, an owl and an orange star"
