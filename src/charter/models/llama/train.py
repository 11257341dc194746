"""The forward and backward pass of Llama-like models over a line of packed rows, written out.

A general model class under autocast casts every weight in every pass, keeps every intermediate, and calls three times as many
kernels. Here a block is one function with its derivative: it keeps only what the derivative needs, computes the cheap
parts again, and reads weights that were cast once since they last changed (``llama.weights``). Matrix products are in the
precision of the run; the residual stream, norms' statistics and the gradients of weights are float32. Losses and gradients
equal those of transformers under autograd (a test).
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from charter.models.llama.weights import Block, LlamaWeights, inverse_rms, rotate_, weights_of
from charter.models.packing import Packed, View

STRIDE = 64  # lines are filled up to a multiple of it: oneDNN compiles and keeps a kernel for every new shape of a product
QUERIES_TOGETHER = 128  # of a long row; fewer waste less on later keys, more make longer products


def hidden_states(model: Any, packed: Packed, rows: Tensor, dtype: torch.dtype, *, again: bool = False) -> Tensor:
    """Last hidden states, float32, at the places ``rows`` (n,) of the line: (n, H). The last block computes no other row. With
    ``again`` a block keeps only its input and is computed again for its gradient."""
    weights = weights_of(model, dtype)
    line = Line(weights, packed, rows)
    ids = F.pad(packed.ids, (0, line.length - len(packed.ids)))
    x = F.embedding(ids, weights.embedding, padding_idx=weights.padding)
    for number, block in enumerate(weights.blocks):
        last = number == len(weights.blocks) - 1
        layer = functools.partial(run_block, block=block, line=line, rows=rows if last else None)
        if again and torch.is_grad_enabled():
            x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
        else:
            x = layer(x)
    return F.rms_norm(x, (x.shape[1],), weights.norm, weights.eps)


def run_block(x: Tensor, *, block: Block, line: Line, rows: Tensor | None) -> Tensor:
    """One layer on a line (N, H)."""
    out: Tensor = _Block.apply(x, block, line, rows, *block.parameters())  # type: ignore[no-untyped-call]
    return out


class Chunk:
    """Rows of similar length that are computed together. slots: (r, T) their places in the line, pads anywhere; bias: (r or 1, 1,
    T, S) added to scores; prompts: (r, Tp) places of the prompt before each row, None for whole rows."""

    def __init__(self, rows: Tensor, view: View, lengths: Tensor, dtype: torch.dtype) -> None:
        t = int(lengths[rows].max())
        self.rows, self.slots = rows, view.slots[rows, :t]
        self.shape = (len(rows), t)
        real = view.real[rows, :t]
        self.pads = None if bool(real.all()) else ~real.reshape(-1, 1)
        least = torch.finfo(dtype).min
        self.bias = torch.full((1, 1, t, t), least, dtype=dtype, device=rows.device).triu_(1)
        self.prompts: Tensor | None = None
        self.owner: Tensor | None = None
        cuts = [round(i * t / max(t // QUERIES_TOGETHER, 1)) for i in range(max(t // QUERIES_TOGETHER, 1) + 1)]
        self.pieces = list(itertools.pairwise(cuts))
        """Ranges of queries: a piece needs only the keys up to its end."""
        self.last_pieces = self.pieces
        """Of the last block, from the first query on that a row of the chunk is read at."""

    def read_at(self, read: Tensor) -> None:
        """Leave the queries out of the last block that lie before all places of the line where ``read`` (N,) is true."""
        needed = read[self.slots]
        if self.pads is not None:
            needed = needed & ~self.pads.view(self.shape)
        columns = needed.any(dim=0).nonzero()
        # Products in bfloat16 add in pairs: from an even column on their sums are those of all columns, bit for bit.
        first = int(columns[0]) // 2 * 2 if len(columns) else self.shape[1]
        self.last_pieces = [(max(start, first), stop) for start, stop in self.pieces if stop > first]

    def stand_behind(self, prompts: View, owner: Tensor) -> None:
        """Let each row see the tokens of its prompt too."""
        r, t = self.shape
        self.owner = owner[self.rows]
        width = int(prompts.real[self.owner].sum(dim=1).max())
        self.prompts = prompts.slots[self.owner, :width]
        hidden = torch.zeros(r, width, dtype=self.bias.dtype, device=self.slots.device)
        hidden.masked_fill_(~prompts.real[self.owner, :width], torch.finfo(self.bias.dtype).min)
        of_prompt = hidden.view(r, 1, 1, width).expand(r, 1, t, width)
        self.bias = torch.cat((of_prompt, self.bias.expand(r, 1, t, t)), dim=3)


def chunks_of(view: View, dtype: torch.dtype) -> list[Chunk]:
    """The rows of a view, those of similar length together: none is padded by more than a sixth, or by a few tokens."""
    lengths = view.real.sum(dim=1)
    order = lengths.argsort(stable=True)
    ends, chunks, start = lengths[order].tolist(), [], 0
    for i in range(1, len(ends) + 1):
        if i == len(ends) or ends[i] > max(1.2 * ends[start], ends[start] + 8):
            if ends[i - 1]:
                chunks.append(Chunk(order[start:i], view, lengths, dtype))
            start = i
    return chunks


class Line:
    """The places of a line's tokens in attention, and the rotation of each position. ``length``: with the filling; ``rows``:
    the places that the last block returns."""

    def __init__(self, weights: LlamaWeights, packed: Packed, rows: Tensor) -> None:
        layout = packed.layout
        self.heads, self.kv_heads, self.head_dim = weights.heads, weights.kv_heads, weights.head_dim
        self.dtype, self.eps = weights.dtype, weights.eps
        n = len(packed.ids)
        self.length = -(-n // STRIDE) * STRIDE
        self.cos, self.sin = weights.rope(F.pad(packed.positions, (0, self.length - n)))
        self.chunks = chunks_of(layout.responses, self.dtype)
        self.prompts = layout.prompts
        if layout.prompts is not None:
            assert layout.owner is not None
            for chunk in self.chunks:
                chunk.stand_behind(layout.prompts, layout.owner)
            self.chunks = chunks_of(layout.prompts, self.dtype) + self.chunks
            self.of_prompts = layout.prompts.slots[layout.prompts.real]
        self.back = torch.empty(len(packed.ids), dtype=torch.long, device=packed.ids.device)
        read = torch.zeros(len(packed.ids), dtype=torch.bool, device=packed.ids.device)
        read[rows] = True
        self.slots = 0  # of all chunks, pads included
        for chunk in self.chunks:
            chunk.read_at(read)
            n = chunk.slots.numel()
            places, slots = torch.arange(self.slots, self.slots + n, device=self.back.device), chunk.slots.reshape(-1)
            kept = slice(None) if chunk.pads is None else ~chunk.pads.squeeze(1)
            self.back[slots[kept]] = places[kept]
            self.slots += n

    def heads_first(self, line: Tensor, slots: Tensor) -> Tensor:
        """Tokens of the line (N, h D) at ``slots`` (r, T) as (h, r, T, D)."""
        taken = line.index_select(0, slots.reshape(-1)).view(slots.numel(), -1, self.head_dim)
        return taken.transpose(0, 1).contiguous().view(-1, *slots.shape, self.head_dim)

    def parts(self, like: Tensor, heads: int) -> tuple[Tensor, list[Tensor]]:
        """Room for ``heads`` of all chunks, tokens first: whole, (slots, h D), and of each chunk, (r, T, h, D)."""
        whole = like.new_empty(self.slots, heads * self.head_dim)
        sizes = [chunk.slots.numel() for chunk in self.chunks]
        parts = [
            part.view(*chunk.shape, heads, self.head_dim)
            for part, chunk in zip(torch.split(whole, sizes), self.chunks, strict=True)
        ]
        return whole, parts

    def in_line(self, whole: Tensor) -> Tensor:
        """The slots of all chunks (slots, F) as the line; 0 for the filling."""
        n = len(self.back)
        line = whole.new_empty(self.length, whole.shape[1])
        torch.index_select(whole, 0, self.back, out=line[:n])
        line[n:] = 0
        return line

    def by_query(self, x: Tensor) -> Tensor:
        """Heads (Hq, r, T, D) as products for bmm: the queries that share a key head side by side, (Hk r, G T, D)."""
        _, rows, t, d = x.shape
        group = self.heads // self.kv_heads
        if group > 1:
            x = x.view(self.kv_heads, group, rows, t, d).transpose(1, 2)
        return x.reshape(self.kv_heads * rows, group * t, d)

    def put_queries(self, part: Tensor, x: Tensor) -> None:
        """Write the inverse of ``by_query`` into the queries (r, T, Hq, D) of a chunk."""
        rows, t, _, d = part.shape
        group = self.heads // self.kv_heads
        by_group = x.view(self.kv_heads, rows, group, t, d).permute(1, 3, 0, 2, 4)
        part.view(rows, t, self.kv_heads, group, d).copy_(by_group)

    def attend(self, mixed: Tensor, *, last: bool) -> tuple[Tensor, list[Tensor]]:
        """Attention of queries, keys and values (N, (Hq + 2 Hk) D): (N, Hq D), and tensors for the derivative. In the ``last``
        block only the rows that it returns are computed, the others are undefined."""
        saved = []
        whole, parts = self.parts(mixed, self.heads)
        for chunk, part in zip(self.chunks, parts, strict=True):
            rows, t = chunk.shape
            query, key, value = torch.split(self.heads_first(mixed, chunk.slots), [self.heads, self.kv_heads, self.kv_heads])
            if chunk.prompts is not None:
                before = self.heads_first(mixed[:, self.heads * self.head_dim :], chunk.prompts).chunk(2)
                key, value = torch.cat((before[0], key), dim=2), torch.cat((before[1], value), dim=2)
            key, value = key.flatten(0, 1), value.flatten(0, 1)
            saved += [key, value]
            width = key.shape[1] - t
            for start, stop in chunk.last_pieces if last else chunk.pieces:
                seen = width + stop
                q = self.by_query(query[:, :, start:stop])
                scores = torch.bmm(q, key[:, :seen].transpose(1, 2))
                scores.view(self.kv_heads, rows, -1, stop - start, seen).add_(chunk.bias[..., start:stop, :seen])
                weights = torch.softmax(scores, dim=-1)
                self.put_queries(part[:, start:stop], torch.bmm(weights, value[:, :seen]))
                saved += [q, weights]
        return self.in_line(whole), saved

    def attend_backward(self, gradient: Tensor, saved: tuple[Tensor, ...], *, last: bool) -> Tensor:
        """From the gradient of ``attend``'s output (N, Hq D) to that of its input (N, (Hq + 2 Hk) D)."""
        kept = iter(saved)
        of_prompts = None
        if self.prompts is not None:  # the responses' gradients of their prompts are added up, in float32
            width = 2 * self.kv_heads * self.head_dim
            of_prompts = torch.zeros(*self.prompts.shape, width, dtype=torch.float32, device=gradient.device)
        whole, parts = self.parts(gradient, self.heads + 2 * self.kv_heads)
        for chunk, part in zip(self.chunks, parts, strict=True):
            rows, t = chunk.shape
            key, value = next(kept), next(kept)
            width = key.shape[1] - t
            flat = gradient.index_select(0, chunk.slots.reshape(-1))
            if chunk.pads is not None:  # the gradient of a pad must not reach the keys that it saw
                flat.masked_fill_(chunk.pads, 0.0)
            heads = flat.view(rows * t, self.heads, self.head_dim).transpose(0, 1).contiguous()
            heads = heads.view(self.heads, rows, t, self.head_dim)
            pieces = chunk.last_pieces if last else chunk.pieces
            of_query, of_key, of_value = torch.split(part, [self.heads, self.kv_heads, self.kv_heads], dim=2)
            of_query[:, : pieces[0][0] if pieces else t] = 0
            totals = [torch.zeros_like(key), torch.zeros_like(value)] if len(pieces) != 1 else []
            for start, stop in pieces:
                query, weights = next(kept), next(kept)
                seen = width + stop
                g = self.by_query(heads[:, :, start:stop])
                of_weights = torch.bmm(g, value[:, :seen].transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                self.put_queries(of_query[:, start:stop], torch.bmm(of_scores, key[:, :seen]))
                products = [torch.bmm(of_scores.transpose(1, 2), query), torch.bmm(weights.transpose(1, 2), g)]
                for total, product in zip(totals, products, strict=bool(totals)):
                    total[:, :seen] += product
                totals = totals or products
            both = [total.view(self.kv_heads, rows, -1, self.head_dim).permute(1, 2, 0, 3) for total in totals]  # (r, S, Hk, D)
            of_key.copy_(both[0][:, width:])
            of_value.copy_(both[1][:, width:])
            if chunk.prompts is not None:
                assert of_prompts is not None
                assert chunk.owner is not None
                before = torch.cat([x[:, :width] for x in both], dim=2).flatten(2).float()
                of_prompts[:, :width].index_add_(0, chunk.owner, before)
        line = self.in_line(whole)
        if of_prompts is not None:
            assert self.prompts is not None
            keys = line[:, self.heads * self.head_dim :]
            keys[self.of_prompts] += of_prompts[self.prompts.real].to(line.dtype)
        return line


class _Block(torch.autograd.Function):
    """One layer on a line (N, H). With ``rows`` it returns only those: the others serve as keys and values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block, line: Line, rows: Tensor | None, *_: Tensor) -> Tensor:
        scale = inverse_rms(x, line.eps)
        normed = (x * scale).to(line.dtype)
        mixed = block.qkv(normed)
        rotate_(mixed.view(len(mixed), -1, line.head_dim)[:, : line.heads + line.kv_heads], line.cos, line.sin)
        attended, saved = line.attend(mixed, last=rows is not None)
        if rows is not None:
            x, attended = x.index_select(0, rows), attended.index_select(0, rows)
        middle = block.out(attended).float().add_(x)
        mlp_scale = inverse_rms(middle, line.eps)
        mlp_normed = (middle * mlp_scale).to(line.dtype)
        gate_up = block.gate_up(mlp_normed)
        gate, up = gate_up.chunk(2, dim=1)
        out = middle.add_(block.down(F.silu(gate).mul_(up)))
        ctx.block, ctx.line, ctx.rows = block, line, rows
        ctx.save_for_backward(normed, scale, attended, mlp_normed, mlp_scale, gate_up, *saved)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        block, line, rows = ctx.block, ctx.line, ctx.rows
        normed, scale, attended, mlp_normed, mlp_scale, gate_up, *saved = ctx.saved_tensors
        (gradient,) = gradients
        g = gradient.to(line.dtype)
        # The gated product, computed again.
        gate, up = gate_up.chunk(2, dim=1)
        gated = F.silu(gate)
        of_product = g @ block.down.weight
        of_gate_up = torch.empty_like(gate_up)
        torch.mul(of_product, gated, out=of_gate_up[:, gate.shape[1] :])
        torch.ops.aten.silu_backward.grad_input(of_product.mul_(up), gate, grad_input=of_gate_up[:, : gate.shape[1]])
        of_down = block.down.gradients(g, gated.mul_(up))
        of_gate_up_weights = block.gate_up.gradients(of_gate_up, mlp_normed)
        of_middle = norm_backward(of_gate_up @ block.gate_up.weight, mlp_normed, mlp_scale).add_(gradient)
        # Attention.
        g = of_middle.to(line.dtype)
        of_out = block.out.gradients(g, attended)
        of_attended, of_x = g @ block.out.weight, of_middle
        if rows is not None:
            of_attended = of_attended.new_zeros(len(normed), of_attended.shape[1]).index_add_(0, rows, of_attended)
            of_x = of_middle.new_zeros(normed.shape).index_add_(0, rows, of_middle)
        of_mixed = line.attend_backward(of_attended, tuple(saved), last=rows is not None)
        rotate_(of_mixed.view(len(normed), -1, line.head_dim)[:, : line.heads + line.kv_heads], line.cos, line.sin, back=True)
        of_qkv = block.qkv.gradients(of_mixed, normed)
        of_x = norm_backward(of_mixed @ block.qkv.weight, normed, scale).add_(of_x)
        return of_x, None, None, None, *of_qkv, *of_out, *of_gate_up_weights, *of_down


def norm_backward(gradient: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """From the gradient g of x · scale, which is ``normed``, to that of x (N, H), float32: scale (g - normed mean(g normed))."""
    along = torch.linalg.vecdot(gradient, normed).float().div_(normed.shape[1]).unsqueeze(1)
    along_x = normed.to(torch.float32, copy=True).mul_(along)  # in float32 ``normed`` is kept for others
    return (gradient.float() - along_x).mul_(scale)
