"""Filters of sampling: top-k, top-p (Holtzman et al. 2020) and min-p (Nguyen et al. 2024), in the order and by the definitions of
transformers: temperature, the k likeliest tokens, top-p of the mass that these have, min-p.

A filter keeps the tokens whose probability reaches an edge; where several tokens tie at the edge, all of them stay, so nothing
depends on the order of a sort. Few tokens carry most of the mass, so the edge of top-p is looked for among the likeliest few, and
only a row whose edge lies beyond them is sorted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from charter.records import Filters

ALL_TOKENS = Filters()


FEW = 64  # likeliest tokens among which the edge of top-p is looked for first
WIDTH = 32  # tokens of a block of ``largest``


def exact_of(device: torch.device) -> torch.dtype:
    """The precision of running sums of probabilities: float64, and float32 on a Mac's GPU, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def filtered_(probabilities: Tensor, filters: Filters) -> Tensor:
    """Set to 0, in place, the probabilities (B, V) of the tokens that are filtered out. What is left does not add up to 1."""
    return probabilities.masked_fill_(probabilities < edge_of(probabilities, filters), 0)


def edge_of(probabilities: Tensor, filters: Filters) -> Tensor:
    """The least probability (B, 1) that stays in each row of probabilities (B, V)."""
    edge, values = torch.zeros_like(probabilities[:, :1]), None
    if filters.top_k is not None and filters.top_k < probabilities.shape[1]:
        values = largest(probabilities, filters.top_k)
        edge = values[:, -1:]
    if filters.top_p is not None and filters.top_p < 1:
        if values is None:
            mass = probabilities.sum(dim=1, keepdim=True).to(exact_of(probabilities.device))
        else:
            n_tied = torch.count_nonzero(probabilities >= edge, dim=1).unsqueeze(1) - values.shape[1]
            mass = values.sum(dim=1, keepdim=True, dtype=exact_of(values.device)) + n_tied * edge
        edge = torch.maximum(edge, edge_of_mass(probabilities, filters.top_p * mass))
    if filters.min_p:
        edge = torch.maximum(edge, filters.min_p * probabilities.amax(dim=1, keepdim=True))
    return edge


def edge_of_mass(probabilities: Tensor, wanted: Tensor) -> Tensor:
    """The probability (B, 1) of the last of the fewest likeliest tokens of each row (B, V) that have the mass wanted (B, 1)."""
    edges = torch.zeros_like(probabilities[:, :1])
    rows = torch.arange(len(probabilities), device=probabilities.device)
    n = FEW
    while len(rows):
        # In the first round the rows are all of them, so nothing is copied.
        part = probabilities if len(rows) == len(probabilities) else probabilities[rows]
        values = largest(part, min(n, part.shape[1]))
        mass = values.cumsum(dim=1, dtype=exact_of(values.device))
        place = torch.searchsorted(mass, wanted[rows]).clamp_(max=values.shape[1] - 1)
        edges[rows] = values.gather(1, place)
        rows = rows[mass[:, -1] < wanted[rows, 0]] if values.shape[1] < part.shape[1] else rows[:0]
        n *= 4
    return edges


def largest(values: Tensor, n: int) -> Tensor:
    """The n largest of each row of values (B, V), the largest first: (B, n). They lie in the n blocks with the largest maxima."""
    b, v = values.shape
    if v % WIDTH or n * WIDTH >= v:
        return values.topk(n, dim=1).values
    blocks = values.view(b, -1, WIDTH)
    best = blocks.amax(dim=2).topk(n, dim=1, sorted=False).indices
    return blocks.gather(1, best.unsqueeze(2).expand(-1, -1, WIDTH)).flatten(1).topk(n, dim=1).values
