"""Stand-ins: every family is written as published ones are, and loads where Charter uses it."""

import pytest
import torch

from charter.commands.app import run_command
from charter.models.chat_template import PLAIN_TEMPLATE, TRANSCRIPT_TEMPLATE, encode_prompt
from charter.models.load import load_classifier
from charter.models.trunk import load_trunk
from charter.records import Message
from charter.testbed.standins import CLASSIFIER_FAMILIES, ENCODER_DECODER_FAMILIES, FAMILIES, WITHOUT_TEMPLATE

ASK = [Message(role="user", content="Hello, who are you?")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stand_in_loads_where_its_family_does(family, tmp_path):
    folder = tmp_path / family
    assert run_command(["testbed", "stand-in", family, "--out", str(folder)]) == 0
    if family in CLASSIFIER_FAMILIES:
        model, tokenizer = load_classifier(str(folder))
        assert model.config.id2label == {0: "nothate", 1: "hate"}
        batch = tokenizer(["word " * 1000], truncation=True, return_tensors="pt")
        assert torch.isfinite(model(**batch).logits).all()
        return
    trunk = load_trunk(str(folder), writes=family not in CLASSIFIER_FAMILIES.values())
    ids = encode_prompt(trunk.tokenizer, ASK)
    if family in ENCODER_DECODER_FAMILIES:
        assert trunk.tokenizer.chat_template == PLAIN_TEMPLATE
        assert ids[-1] == trunk.tokenizer.eos_token_id
    elif family in WITHOUT_TEMPLATE:
        assert trunk.tokenizer.chat_template == TRANSCRIPT_TEMPLATE
    assert trunk.room is None or trunk.room >= 250


def test_what_is_wrong_is_said_in_a_line(tmp_path, capsys):
    out = str(tmp_path / "m")
    assert run_command(["testbed", "stand-in", "lama", "--out", out]) == 2
    assert "llama" in capsys.readouterr().err
    assert run_command(["testbed", "stand-in", "roberta-classifier", "--labels", "hate", "--out", out]) == 2
    assert "two different names" in capsys.readouterr().err
    assert run_command(["testbed", "stand-in", "gpt2", "--out", out]) == 0
    assert run_command(["testbed", "stand-in", "gpt2", "--out", out]) == 2
    assert "exists already" in capsys.readouterr().err
