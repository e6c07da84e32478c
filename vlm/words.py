"""What stands behind the merger of TrimLens-150M's tower: visual tokens drawn towards the words that they are near."""

import torch
from torch import nn

SHARE, SHARPNESS = 0.5, 40.0


class NearWords(nn.Module):
    """x -> half x, half the word that x is expected to say, under softmax(SHARPNESS * cosine with every word).

    A token of the tower is right about its word far more often (9 of 10) than it is close to it (a cosine of 0.4), and what else
    it holds is noise to a language model of 135M (training/README.md). Nothing here learns.

    Args:
        directions: unit vectors [C, D] of the words, from the language model's own embeddings less their mean.
        mean: [D], of all embeddings.
        norm: the usual length of an embedding less that mean.
    """

    def __init__(self, directions: torch.Tensor, mean: torch.Tensor, norm: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in (("directions", directions), ("mean", mean), ("norm", norm)):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D] in x's dtype."""
        likeness = nn.functional.normalize(x - self.mean, dim=-1) @ self.directions.T
        said = (SHARPNESS * likeness.float()).softmax(-1).to(x.dtype) @ self.directions
        return ((1 - SHARE) * x + SHARE * (self.mean + self.norm * said)).to(x.dtype)
