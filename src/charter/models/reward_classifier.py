"""A reward model as `AutoModelForSequenceClassification` with one label, which scores in plain transformers as in Charter.

Transformers scores a row at its last token that is not the pad token. So the pad token must differ from the token that closes an
answer, and the chat template must end there.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from charter.errors import InputError
from charter.models.chat_template import encode_prompt, encode_response, end_ids
from charter.models.load import first_line, kind_of, quiet_transformers
from charter.models.reward_trunk import SCALE, load_reward_model
from charter.records import Message

PAD = "<|pad|>"
TRIAL = (
    Message(role="user", content="Name a soup."), Message(role="assistant", content="Bread."),
    Message(role="user", content="Is bread a soup?"), Message(role="assistant", content="No."),
)  # fmt: skip


def as_classifier(folder: Path) -> tuple[Any, Any]:
    """The reward model of a folder of Charter as a sequence classifier with one label, adapters merged, and its tokenizer.

    Its head is `score.weight`, so its scores are those of Charter before they are standardised. Mean and deviation are in
    config.json, under ``SCALE``. InputError for an ensemble, for a model that is not a decoder, and where plain transformers
    would read an answer differently.
    """
    kind = kind_of(str(folder))
    if kind != "decoder":
        raise InputError(f"an {kind}; Charter writes the reward models of decoders only as sequence classifiers", file=folder)
    trunk, scorers = load_reward_model(folder)
    if len(scorers.roles) > 1:
        raise InputError(f"an ensemble of {len(scorers.roles)} reward models, and a sequence classifier has a single head; "
                         "train a reward model without ensemble", file=folder)  # fmt: skip
    (role,), (scale,) = scorers.roles, scorers.scales
    scorer = trunk.copies[role] if trunk.lora is None else trunk.adapters.merge_and_unload(adapter_names=[role])
    end_where_charter_ends(trunk.tokenizer, folder)
    if set_pad_apart(trunk.tokenizer) >= scorer.get_input_embeddings().weight.shape[0]:
        with quiet_transformers():
            scorer.resize_token_embeddings(len(trunk.tokenizer), mean_resizing=False)
    model = classifier_around(scorer, trunk.heads[role], folder)
    ends = list(end_ids(trunk.tokenizer))
    model.config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = trunk.tokenizer.pad_token_id
    setattr(model.config, SCALE, {"mean": scale.mean, "std": scale.std})
    return model, trunk.tokenizer


def classifier_around(scorer: Any, head: nn.Linear, folder: Path) -> Any:
    """The classifier of transformers with the layers of ``scorer`` and a head. InputError if the family has none."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(scorer.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):  # only the names of its parts are needed
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InputError(f"transformers has no sequence classifier of this family: {first_line(error)}", file=folder) from None
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.base_model_prefix != scorer.base_model_prefix:
        raise InputError(f"the head of {type(model).__name__} is not a single layer; Charter cannot fill it", file=folder)
    setattr(model, model.base_model_prefix, scorer.base_model)
    model.score = head
    return model.eval()


def set_pad_apart(tokenizer: Any) -> int:
    """Give the tokenizer a pad token other than the one that closes an answer, on the right; returns its id."""
    if tokenizer.pad_token_id in end_ids(tokenizer):
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "right"
    return int(tokenizer.pad_token_id)


def end_where_charter_ends(tokenizer: Any, folder: Path) -> None:
    """Let the chat template end a finished conversation at the token that closes the answer (many write a line break after it).
    InputError if it then still gives other ids than Charter scores."""
    expected = encode_prompt(tokenizer, TRIAL[:-1]) + encode_response(tokenizer, TRIAL[-1].content)
    if rendered(tokenizer) == expected:
        return
    stored = tokenizer.chat_template
    tokenizer.chat_template = "{% set text %}" + stored + "{% endset %}{{ text if add_generation_prompt else text.rstrip() }}"
    if rendered(tokenizer) != expected:
        raise InputError("the chat template does not write a finished conversation as Charter scores it, so plain transformers "
                         "would give other scores; set a chat_template that ends with the end-of-turn token",
                         file=folder)  # fmt: skip


def rendered(tokenizer: Any) -> list[int]:
    """The ids of a finished conversation in plain transformers."""
    turns = [message.model_dump() for message in TRIAL]
    return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
