"""Models that are not decoders: encoder-decoders as policies (T5, BART), encoders as reward models (BERT, RoBERTa, DeBERTa).

Above this page nothing changes: a row is a prompt and a response, and its log-probabilities, values and scores are read at the
same places as a decoder's. An encoder-decoder reads the prompt and writes the response. An encoder reads both at once and writes
nothing; its score is read at the first token, which sees the whole row and stands before it, so that a prompt that is cut at its
beginning keeps the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from charter.errors import InputError
from charter.models.packing import Packed, right_pad

ENCODERS = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "deberta", "deberta-v2", "electra", "modernbert"}
)
POOLED = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})  # with a pooling layer that nothing here reads
OFFSET = frozenset({"roberta", "xlm-roberta", "camembert"})  # positions are counted from after the pad id


# -- encoder-decoders --------------------------------------------------------------------------------------------------


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def opening(model: Any) -> list[int]:
    """The tokens before a response: the decoder's start token, and the first token that the configuration forces (BART).
    InputError if the configuration names no start."""
    config, generation = model.config, getattr(model, "generation_config", None)
    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(generation, "decoder_start_token_id", None) if start is None else start
    if start is None:
        raise InputError("decoder_start_token_id is missing in the model's configuration; set it in config.json")
    first = getattr(generation, "forced_bos_token_id", None)
    return [start] if first is None else [start, first]


class EncoderDecoder:
    """The state of one call of ``sample`` (a ``generate.Decoder``). The prompt is read once for its K responses."""

    crowd = 0.75

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
    """The decoder's last hidden states (N, H) at the places of a line of whole rows: the state before a response token is at the
    place of the token before it, and the last state at the end of the response. Other places of a prompt are 0."""
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


# -- encoders ----------------------------------------------------------------------------------------------------------


def is_encoder(model: Any) -> bool:
    return model.config.model_type in ENCODERS


def row_limit(model: Any) -> int | None:
    """Most tokens of prompt and response together, the first token not counted; None if the model names no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not limit:
        return None
    return int(limit) - 1 - (model.config.pad_token_id + 1 if model.config.model_type in OFFSET else 0)


def first_in_line(model: Any, packed: Packed, first: int) -> Tensor:
    """The last hidden state (N, H) of the first token of each row of a line of whole rows, where the row ends; 0 elsewhere."""
    rows = packed.layout.responses
    begin = torch.ones_like(rows.real[:, :1])
    attention = torch.cat((begin, rows.real), dim=1)
    ids = torch.cat((begin.long() * first, packed.ids[rows.slots]), dim=1).masked_fill(~attention, 0)
    more = {}
    if getattr(model.config, "type_vocab_size", 0) > 1:  # the second of two texts
        of_prompt = rows.real.sum(dim=1) - packed.mask.sum(dim=1)
        column = torch.arange(ids.shape[1], device=ids.device)
        more["token_type_ids"] = (attention & (column > of_prompt.unsqueeze(1))).long()
    states = model(input_ids=ids, attention_mask=attention.long(), **more).last_hidden_state[:, 0]
    line: Tensor = states.new_zeros(len(packed.ids), states.shape[1])
    return line.index_put_((packed.last,), states)
