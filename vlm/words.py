"""What stands behind the merger of TrimLens-150M's tower: visual tokens drawn towards the words that they are near."""

import torch
from torch import nn

SHARE, SHARPNESS = 0.5, 40.0
# The temperature and the bias that the tower learned its marker with.
MARKER_SHARPNESS, MARKER_BIAS = 20.0, -3.0


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
    """

    def __init__(self, directions: torch.Tensor, mean: torch.Tensor, norm: torch.Tensor, marker: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in (("directions", directions), ("mean", mean), ("norm", norm), ("marker", marker)):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D] in x's dtype."""
        unit = nn.functional.normalize(x - self.mean, dim=-1)
        marked = marker_logits(unit, self.marker).sigmoid()[..., None].to(x.dtype)
        said = (SHARPNESS * (unit @ self.directions.T).float()).softmax(-1).to(x.dtype) @ self.directions + marked * self.marker
        return ((1 - SHARE) * x + SHARE * (self.mean + self.norm * said)).to(x.dtype)


def marker_logits(unit: torch.Tensor, marker: torch.Tensor) -> torch.Tensor:
    """Log-odds, float32 [...], that tokens of these directions [..., D] hold an item's centre."""
    return MARKER_SHARPNESS * (unit @ marker).float() + MARKER_BIAS
