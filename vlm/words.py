"""What stands behind the merger of TrimLens-150M's tower: visual tokens drawn towards their words, and where they stand."""

import torch
from torch import nn

SHARE, SHARPNESS = 0.5, 40.0
# The temperature and the bias that the tower learned its marker with.
MARKER_SHARPNESS, MARKER_BIAS = 20.0, -3.0
PLACE_SHARE, PLACE_SHARPNESS = 0.25, 24.0


class NearWords(nn.Module):
    """x -> half x, half the word that x is expected to say, under softmax(SHARPNESS * cosine with every word), and the marker.

    The marker (" one", where an item has its centre) comes on top of a word, as likely as the tower says that it stands there.

    A token of the tower is right about its word far more often (9 of 10) than it is close to it (a cosine of 0.4), and what else
    it holds is noise to a language model of 135M (training/README.md). Nothing here learns.

    Args:
        directions: unit vectors [C, D] of the words, from the language model's own embeddings less their mean.
        mean: [D], of all embeddings.
        norm: the usual length of an embedding less that mean.
        marker: unit vector [D].
        places: unit vectors [6, D]: top, middle, bottom; left, center, right.
    """

    def __init__(self, **words: torch.Tensor) -> None:
        super().__init__()
        for name in ("directions", "mean", "norm", "marker", "places"):
            self.register_buffer(name, words[name], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D] in x's dtype."""
        unit = nn.functional.normalize(x - self.mean, dim=-1)
        marked = marker_logits(unit, self.marker).sigmoid()[..., None].to(x.dtype)
        said = (SHARPNESS * (unit @ self.directions.T).float()).softmax(-1).to(x.dtype) @ self.directions + marked * self.marker
        return ((1 - SHARE) * x + SHARE * (self.mean + self.norm * said)).to(x.dtype)

    def placed(self, x: torch.Tensor) -> torch.Tensor:
        """[..., rows, columns, D] in raster order -> the same, and on top of every token the thirds of the image that it stands in.

        Without them the language model tells a place by how the other tokens lie about it, and errs once most of those are pruned.
        """
        high, wide = (thirds(count).to(x) @ of for count, of in zip(x.shape[-3:-1], self.places.to(x).split(3), strict=True))
        return x + PLACE_SHARE * self.norm.to(x) * (high[:, None] + wide)


def thirds(count: int) -> torch.Tensor:
    """[count, 3]: how far the cells of a row lie in its first, middle and last third; sums to 1, soft at the borders."""
    at = (torch.arange(count) + 0.5) / count
    first, last = (torch.sigmoid(PLACE_SHARPNESS * distance) for distance in (1 / 3 - at, at - 2 / 3))
    return torch.stack([first, 1 - first - last, last], -1)


def place_tokens(tower: nn.Module, args: tuple, kwargs: dict, output):
    """Forward hook of the tower, with its arguments: every image's tokens get their places (:meth:`NearWords.placed`)."""
    grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
    merged = grid // torch.tensor([1, tower.spatial_merge_size, tower.spatial_merge_size], device=grid.device)
    images = output.pooler_output.split(merged.prod(-1).tolist())
    placed = (tower.merger[1].placed(x.unflatten(0, shape)) for x, shape in zip(images, merged.tolist(), strict=True))
    output.pooler_output = torch.cat([x.flatten(0, 2) for x in placed])
    return output


def marker_logits(unit: torch.Tensor, marker: torch.Tensor) -> torch.Tensor:
    """Log-odds, float32 [...], that tokens of these directions [..., D] hold an item's centre."""
    return MARKER_SHARPNESS * (unit @ marker).float() + MARKER_BIAS
