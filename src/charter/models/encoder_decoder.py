"""Encoder-decoders as policies (T5, BART): the encoder reads the prompt, the decoder writes the response.

Above this page nothing changes: a row is a prompt and a response, and its log-probabilities, values and scores are read at the
same places as a decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from charter.errors import InputError
from charter.models.packing import Packed


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def opening(model: Any) -> list[int]:
    """What the decoder is given before a response: its start token, and the token that the model was trained to say first where
    its configuration forces one (BART). InputError where it names no start."""
    config, generation = model.config, getattr(model, "generation_config", None)
    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(generation, "decoder_start_token_id", None) if start is None else start
    if start is None:
        raise InputError("the model's configuration has no decoder_start_token_id; a decoder cannot begin without one")
    first = getattr(generation, "forced_bos_token_id", None)
    return [start] if first is None else [start, first]


def right_pad(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """ids and attention (B, T) with the padding on the right. The pad id is 0 and never looked at."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    attention = torch.arange(width, device=device) < torch.tensor([[len(row)] for row in rows], device=device)
    return ids, attention.long()


class EncoderDecoder:
    """The state of one call of ``sample``, as ``generate.Decoder`` asks for it. The prompt is read once for its K responses."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], k: int) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self.model = model
        ids, attention = right_pad(prompts, next(model.parameters()).device)
        read = model.get_encoder()(input_ids=ids, attention_mask=attention).last_hidden_state
        self.read, self.attention = read.repeat_interleave(k, 0), attention.repeat_interleave(k, 0)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        begin = torch.tensor([opening(model)], device=ids.device).expand(len(self.read), -1)
        self.logits = self.forward(begin)

    def forward(self, ids: Tensor) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        output = self.model(
            decoder_input_ids=ids, encoder_outputs=BaseModelOutput(last_hidden_state=self.read),
            attention_mask=self.attention, past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        self.logits = self.forward(tokens.unsqueeze(1))
        return self.logits

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.read, self.attention = self.read[rows], self.attention[rows]


def hidden_in_line(model: Any, packed: Packed) -> Tensor:
    """The decoder's last hidden states (N, H) at the places of a line of whole rows: what it knows before a response token stands
    where the token before it does, and the last at the end of the response. Other places of a prompt are 0."""
    rows = packed.layout.responses
    of_response = packed.mask.sum(dim=1)
    of_prompt = rows.real.sum(dim=1) - of_response
    width = int(of_prompt.max())
    attention = torch.arange(width, device=rows.slots.device) < of_prompt.unsqueeze(1)
    begin = torch.tensor([opening(model)], device=rows.slots.device).expand(len(of_response), -1)
    read = model.get_encoder()(
        input_ids=packed.ids[rows.slots[:, :width]].masked_fill(~attention, 0), attention_mask=attention.long()
    ).last_hidden_state
    written = model.get_decoder()(
        input_ids=torch.cat((begin, packed.targets.masked_fill(~packed.mask, 0)), dim=1), use_cache=False,
        encoder_hidden_states=read, encoder_attention_mask=attention.long(),
    ).last_hidden_state[:, begin.shape[1] - 1 :]  # fmt: skip
    # (R, T + 1): before each response token and after the last, where the row ends
    places = torch.cat((packed.before, packed.last.unsqueeze(1)), dim=1)
    real = torch.cat((packed.mask, torch.ones_like(packed.mask[:, :1])), dim=1)
    at = torch.cat((torch.arange(packed.mask.shape[1], device=places.device).expand(packed.mask.shape),
                    of_response.unsqueeze(1)), dim=1)  # fmt: skip
    states = written.gather(1, at.unsqueeze(2).expand(*at.shape, written.shape[2]))
    line: Tensor = written.new_zeros(len(packed.ids), written.shape[2])
    return line.index_put_((places[real],), states[real])
