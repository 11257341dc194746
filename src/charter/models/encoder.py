"""Encoders as reward models (BERT, RoBERTa, DistilBERT, DeBERTa): they read a prompt and its response at once and write nothing.

The score is read at the first token, which sees the whole row. A row is given as everywhere else, a prompt and a response; the
first token stands before it, so that a prompt that is cut at its beginning keeps it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from charter.models.packing import Packed

ENCODERS = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "deberta", "deberta-v2", "electra", "modernbert"}
)
POOLED = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})  # with a pooling layer that nothing here reads
OFFSET = frozenset({"roberta", "xlm-roberta", "camembert"})  # positions are counted from after the pad id


def is_encoder(model: Any) -> bool:
    return model.config.model_type in ENCODERS


def row_limit(model: Any) -> int | None:
    """Most tokens of prompt and response together, the first token not counted; None where the model names no limit."""
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
