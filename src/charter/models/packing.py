"""Rows without padding: every real token once, a prompt once for all its responses.

All of a model but its attention treats each token by itself, so tokens may stand in one long line of length N. A ``LineLayout``
tells attention which of them belong together. Compared with rows padded side by side, no product is spent on padding or on a
second reading of a prompt; losses and gradients are the same (tests).

Where rows must stand side by side, ``left_pad`` and ``right_pad`` fill them up with the id 0, which attention never sees.

Letters: N tokens in the line, P prompts, R responses, T positions of a padded view, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """One row: prompt ids followed by response ids; ``lost``: which of the two lost tokens to a limit (the answer also where
    both did)."""

    prompt: Sequence[int]
    response: Sequence[int]
    lost: Literal["prompt", "answer"] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def clip(row: Tokens, limit: int | None, keep: int = 1) -> Tokens:
    """At most ``limit`` tokens: the oldest of the prompt go first but for ``keep`` of them, then the end of the response."""
    if limit is None or len(row) <= limit:
        return row
    response = row.response[: limit - keep]
    lost: Literal["prompt", "answer"] = "answer" if len(response) < len(row.response) else "prompt"
    return Tokens(row.prompt[len(row.prompt) - (limit - len(response)) :], response, lost)


@dataclass(frozen=True)
class View:
    """A padded view of part of the line. slots: (rows, T) places in the line, 0 for padding; real: (rows, T) bool."""

    slots: Tensor
    real: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, width = self.slots.shape
        return rows, width


@dataclass(frozen=True)
class LineLayout:
    """The tokens that see each other: each prompt itself, each response its prompt (``owner``, (R,)) and itself, causally.

    Without sharing, ``prompts`` is None and ``responses`` has whole rows.
    """

    prompts: View | None
    responses: View
    owner: Tensor | None
    back: Tensor
    """(N,) place of each token of the line in prompts and responses, flattened and put one after the other."""


LAYOUT: ContextVar[LineLayout | None] = ContextVar("layout", default=None)
"""The layout of the line in a model's forward pass, for its attention."""


@dataclass(frozen=True)
class Packed:
    """Prompts and their responses as one line.

    ids, positions: (N,). before: (R, T) places in the line from which each response token is predicted; targets, mask: (R, T) the
    response tokens and their places. last: (R,) place of the last token of each response.
    """

    ids: Tensor
    positions: Tensor
    layout: LineLayout
    before: Tensor
    targets: Tensor
    mask: Tensor
    last: Tensor

    @property
    def n_tokens(self) -> int:
        """Response tokens."""
        return int(self.mask.sum())


def pack(rows: Sequence[Tokens], device: Any = "cpu", *, share: bool = True) -> Packed:
    """Put rows in line. With ``share``, rows with the same prompt share it. A prompt is never empty."""
    prompts, owner = group_by_prompt(rows, share)
    shared = len(prompts) < len(rows)
    ids: list[int] = []
    positions: list[int] = []
    prompt_slots: list[list[int]] = []
    response_slots: list[list[int]] = [[] for _ in rows]
    order: list[tuple[bool, int, int]] = []  # of every token in line: belongs to the view of prompts, row, column
    by_prompt: list[list[int]] = [[] for _ in prompts]
    for r, p in enumerate(owner):
        by_prompt[p].append(r)
    for p, prompt in enumerate(prompts):
        n = len(prompt)
        prompt_slots.append(list(range(len(ids), len(ids) + n)))
        ids += prompt
        positions += range(n)
        if shared:
            order += [(True, p, t) for t in range(n)]
        for r in by_prompt[p]:
            response = rows[r].response
            response_slots[r] = list(range(len(ids), len(ids) + len(response)))
            ids += response
            positions += range(n, n + len(response))
            order += [(False, r, t) for t in (range(len(response)) if shared else range(n + len(response)))]
    whole = [prompt_slots[p] + slots for p, slots in zip(owner, response_slots, strict=True)]
    before = [row[len(row) - len(slots) - 1 : -1] for row, slots in zip(whole, response_slots, strict=True)]
    before_view, targets_view = view_of(before, device), view_of(response_slots, device)
    line = torch.tensor(ids, device=device)
    first, second = (view_of(prompt_slots, device), targets_view) if shared else (None, view_of(whole, device))
    offset = 0 if first is None else first.slots.numel()
    place = [
        row * first.shape[1] + column if first is not None and of_prompt else offset + row * second.shape[1] + column
        for of_prompt, row, column in order
    ]
    return Packed(
        ids=line,
        positions=torch.tensor(positions, device=device),
        layout=LineLayout(
            first, second, torch.tensor(owner, device=device) if shared else None, torch.tensor(place, device=device)
        ),
        before=before_view.slots,
        targets=line[targets_view.slots],
        mask=targets_view.real,
        last=torch.tensor([row[-1] for row in whole], device=device),
    )


def group_by_prompt(rows: Sequence[Tokens], share: bool) -> tuple[list[Sequence[int]], list[int]]:
    """The prompts in line, and the number of the prompt of each row."""
    if not share:
        return [row.prompt for row in rows], list(range(len(rows)))
    places: dict[tuple[int, ...], int] = {}
    owner = [places.setdefault(tuple(row.prompt), len(places)) for row in rows]
    return list(places), owner


def view_of(rows: Sequence[Sequence[int]], device: Any) -> View:
    width = max((len(row) for row in rows), default=0)
    slots = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device).view(len(rows), width)
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    return View(slots.long(), torch.arange(width, device=device) < lengths)


class _Spread(torch.autograd.Function):
    """The line (N, F) as the slots of padded views (S, F), pads 0; ``back`` leads from the line to its slots.

    Each token has one slot, so the gradient of either move is the other move: a gather, where autograd would scatter and add.
    """

    @staticmethod
    def forward(ctx: Any, line: Tensor, slots: Tensor, real: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return line.index_select(0, slots).masked_fill_(~real.unsqueeze(1), 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(0, back), None, None, None


class _Gather(torch.autograd.Function):
    """The slots of padded views (S, F) as the line (N, F); pads are dropped and get gradient 0."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, slots: Tensor, real: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(slots, real)
        return views.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        slots, real = ctx.saved_tensors
        return gradients[0].index_select(0, slots).masked_fill_(~real.unsqueeze(1), 0.0), None, None, None


def attend(layout: LineLayout, query: Tensor, key: Tensor, value: Tensor, kernel: Any) -> Tensor:
    """Attention over a line. query: (1, Hq, N, D), key and value (1, Hk, N, D); returns (1, N, Hq, Dv).

    ``kernel(query, key, value, mask)`` is the attention of padded rows: (B, H, T, D) each, mask (B, 1, T, S) True where seen or
    None for causal; it returns (B, T, H, D).
    """
    views = [view for view in (layout.prompts, layout.responses) if view is not None]
    slots = torch.cat([view.slots.reshape(-1) for view in views])
    real = torch.cat([view.real.reshape(-1) for view in views])
    parts = []
    for x in (query, key, value):
        heads, n, width = x.shape[1:]
        flat = _Spread.apply(x[0].transpose(0, 1).reshape(n, heads * width), slots, real, layout.back)  # type: ignore[no-untyped-call]
        split = flat.split([view.slots.numel() for view in views])
        parts.append([y.view(*view.shape, heads, width).transpose(1, 2) for y, view in zip(split, views, strict=True)])
    if layout.prompts is None:
        outputs = [kernel(parts[0][0], parts[1][0], parts[2][0], None)]
    else:
        assert layout.owner is not None
        of_prompts = kernel(parts[0][0], parts[1][0], parts[2][0], None)
        keys, values = (torch.cat((x[0][layout.owner], x[1]), dim=2) for x in parts[1:])
        r, t = layout.responses.shape
        causal = torch.ones(t, t, dtype=torch.bool, device=query.device).tril().expand(r, t, t)
        prompt = layout.prompts.real[layout.owner].unsqueeze(1).expand(r, t, layout.prompts.shape[1])
        mask = torch.cat((prompt, causal), dim=2).unsqueeze(1)
        outputs = [of_prompts, kernel(parts[0][1], keys, values, mask)]
    heads, width = outputs[0].shape[2:]
    flat = torch.cat([out.reshape(-1, heads * width) for out in outputs])
    line: Tensor = _Gather.apply(flat, slots, real, layout.back)  # type: ignore[no-untyped-call]
    return line.view(1, len(line), heads, width)


def left_pad(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """ids and attention (B, T) with the padding on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, attention


def right_pad(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """ids and attention (B, T) with the padding on the right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    attention = torch.arange(width, device=device) < torch.tensor([[len(row)] for row in rows], device=device)
    return ids, attention.long()


def positions(attention: Tensor) -> Tensor:
    """Position of each token counted from the first real one: (B, T)."""
    return (attention.cumsum(dim=1) - 1).clamp(min=0)
