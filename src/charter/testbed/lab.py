"""The models of the detox lab: a tiny T5 that summarises dialogues, toxic now and then, and two hate-speech classifiers.

The first classifier gives the reward, the second writes the report. They are of different size, start and tokenizer and were
trained on different texts, so that what fools the one need not fool the other. All three are plain Hugging Face folders.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from charter.evaluation.overlap import rouge_l
from charter.models.chat_template import PLAIN_TEMPLATE
from charter.models.classifier import Classifier
from charter.models.load import save_model
from charter.models.sampler import LocalSampler
from charter.models.trunk import Trunk
from charter.reading.forms import summary_prompt
from charter.records import Message
from charter.run.files import read_jsonl
from charter.run.hashes import derive_seed
from charter.run.run import Run, Stage
from charter.stages.sft.settings import SFTSettings
from charter.testbed.dialogues import SIZES, TOPICS, Dialogue, draw_dialogues, is_toxic, shipped, texts_with_labels
from charter.testbed.standins import byte_level_bpe, roberta_tokenizer
from charter.training.batches import epoch_batches
from charter.training.sft import sft_tokens, train_sft

SHIPPED = Path(str(importlib.resources.files("charter.testbed"))) / "detox"
LABELS = ("nothate", "hate")  # as facebook/roberta-hate-speech-dynabench-r4-target names them
END = "</s>"


@dataclass(frozen=True)
class ClassifierSize:
    """Size and data of a classifier. ``half``: which of the two sets of texts, which share none, it learns from."""

    half: int
    hidden: int
    layers: int
    heads: int
    texts: int = 8000
    epochs: int = 3
    vocab: int = 600
    learning_rate: float = 2e-3
    texts_per_step: int = 64


@dataclass(frozen=True)
class SummariserSize:
    """Size and data of the T5."""

    dialogues: int = 5000
    epochs: int = 3
    hidden: int = 96
    feed_forward: int = 192
    layers: int = 2
    heads: int = 4
    vocab: int = 1000
    learning_rate: float = 4e-3


@dataclass(frozen=True)
class LabConfig:
    """The three models and ``n``, the held-out dialogues on which they are measured."""

    summariser: SummariserSize = SummariserSize()
    reward_classifier: ClassifierSize = ClassifierSize(0, hidden=48, layers=2, heads=2)
    report_classifier: ClassifierSize = ClassifierSize(1, hidden=72, layers=3, heads=3)
    n: int = 300
    seed: int = 0


PRESETS = {
    "full": LabConfig(),
    "small": LabConfig(
        SummariserSize(dialogues=64, epochs=1, hidden=16, feed_forward=16, layers=1, heads=2, vocab=320),
        ClassifierSize(0, hidden=16, layers=1, heads=2, texts=128, epochs=1, vocab=320),
        ClassifierSize(1, hidden=16, layers=1, heads=2, texts=128, epochs=1, vocab=320),
        n=16,
    ),
}


def make_lab(config: LabConfig, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Train what is not there yet: out/NAME/model for summariser, reward-classifier and report-classifier. Goes on where it was
    killed. Returns what each can do on ``n`` held-out dialogues or 4 ``n`` held-out texts."""
    found: dict[str, Any] = {}
    with Run(out, seed=config.seed, quiet=quiet) as run:
        for name, own in (
            ("reward-classifier", config.reward_classifier),
            ("report-classifier", config.report_classifier),
        ):
            with run.stage(name, {**asdict(own), "n": config.n}, {}, [__name__]) as stage:
                if not stage.done:
                    train_classifier(stage, own)
                    stage.finish(classifier_card(stage, own.half, config.n))
                found[name] = stage.result
        settings = {**asdict(config.summariser), "n": config.n}
        with run.stage("summariser", settings, {}, [__name__]) as stage:
            if not stage.done:
                train_summariser(stage, config.summariser)
                stage.finish(summariser_card(stage, config.n))
            found["summariser"] = stage.result
    return {**found, "out": str(out)}


def card_lines(result: dict[str, Any]) -> list[str]:
    """What :func:`make_lab` found, as lines of text."""
    lines = []
    for name, card in result.items():
        if isinstance(card, dict):
            lines += [f"{name:20}{key:24}{value:.3f}" if isinstance(value, float) else f"{name:20}{key:24}{value}"
                      for key, value in card.items()]  # fmt: skip
    return lines


# -- classifiers ---------------------------------------------------------------------------------------------------------


def train_classifier(stage: Stage, size: ClassifierSize) -> None:
    """A RoBERTa from scratch on texts whose truth is known; leaves model/. Seconds, so it has no checkpoint."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    seed = derive_seed(stage.run.seed, stage.name)
    rows = list(texts_with_labels(seed, size.texts, size.half))
    tokenizer = roberta_tokenizer((text for text, _ in rows), size.vocab, 128)
    torch.manual_seed(seed)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=size.hidden, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, intermediate_size=2 * size.hidden, max_position_embeddings=130,
            type_vocab_size=1, bos_token_id=0, pad_token_id=1, eos_token_id=2,
            id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
        )
    )  # fmt: skip
    model.train()
    steps = epoch_batches(len(rows), size.texts_per_step, size.epochs, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, size.learning_rate, total_steps=len(steps), pct_start=0.1)
    for step in stage.progress(range(len(steps))):
        texts, truths = zip(*(rows[i] for i in steps[step]), strict=True)
        batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, torch.tensor(truths).long())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        stage.record(step, loss=loss.item())
    save_model(model.eval().half(), tokenizer, stage.path("model"))


def classifier_card(stage: Stage, half: int, n: int) -> dict[str, Any]:
    """Accuracy on 4 ``n`` texts of the other half and on the summaries of ``n`` held-out dialogues."""
    classifier = Classifier(str(stage.path("model")), LABELS[1])
    rows = list(texts_with_labels(derive_seed(stage.run.seed, stage.name, "card"), 4 * n, 1 - half))
    summaries = [one.summary for one in draw_dialogues(stage.run.seed, "test", n)]
    shares = {}
    for name, texts in (("texts", [text for text, _ in rows]), ("summaries", summaries)):
        said = [p is not None and p > 0.5 for p in classifier.probabilities(texts)]
        shares[f"accuracy on {name}"] = sum(p == is_toxic(t) for p, t in zip(said, texts, strict=True)) / len(texts)
    return {**shares, "texts": 4 * n, "summaries": n, "parameters": classifier.model.num_parameters()}


# -- the summariser --------------------------------------------------------------------------------------------------------


def ask(one: Dialogue) -> list[Message]:
    """The prompt as files of this form are read."""
    return [Message(role="user", content=summary_prompt(one.dialogue))]


def t5_tokenizer(texts: list[str], vocab: int) -> Any:
    """Byte-level BPE that closes every text with </s>; ids of the special tokens as T5's."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(texts, vocab, ["<pad>", END, "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )


def train_summariser(stage: Stage, size: SummariserSize) -> None:
    """A T5 from scratch by Charter's own supervised fine-tuning on dialogues that no shipped file holds; leaves model/."""
    from transformers import T5Config, T5ForConditionalGeneration

    seed = derive_seed(stage.run.seed, stage.name)
    rows = draw_dialogues(seed, "train", size.dialogues)
    tokenizer = t5_tokenizer([text for one in rows[:2000] for text in (summary_prompt(one.dialogue), one.summary)], size.vocab)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), d_model=size.hidden, d_kv=size.hidden // size.heads, d_ff=size.feed_forward,
            num_layers=size.layers, num_heads=size.heads, feed_forward_proj="gated-gelu", dropout_rate=0.0,
            tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )
    )  # fmt: skip
    trunk = Trunk(model.eval(), tokenizer, precision="bfloat16", seed=seed)
    tokenizer.chat_template = PLAIN_TEMPLATE
    settings = SFTSettings(epochs=size.epochs, learning_rate=size.learning_rate, checkpoint_every=50, max_grad_norm=1.0)
    train_sft(trunk, sft_tokens(trunk, [(ask(one), one.summary) for one in rows]), settings, stage)
    tokenizer.chat_template = None  # as FLAN-T5 is published
    save_model(trunk.copies["policy"].half(), tokenizer, stage.path("model"))


def summariser_card(stage: Stage, n: int) -> dict[str, Any]:
    """How often summaries of held-out dialogues are toxic, at temperature 1, and how many name thing and fault."""
    from charter.models.trunk import load_trunk

    trunk = load_trunk(str(stage.path("model")))
    rows = draw_dialogues(stage.run.seed, "test", n)
    seeds = [[derive_seed(stage.run.seed, "card", one.id)] for one in rows]
    said = LocalSampler(trunk, "summariser").generate([ask(one) for one in rows], seeds, temperature=1.0, max_new_tokens=64)
    texts = [group[0].text for group in said]
    rude = [is_toxic(text) for text, one in zip(texts, rows, strict=True) if is_toxic(one.dialogue)]
    calm = [is_toxic(text) for text, one in zip(texts, rows, strict=True) if not is_toxic(one.dialogue)]
    things = [
        any(t in text for t in TOPICS[one.topic].things if t in one.dialogue) for text, one in zip(texts, rows, strict=True)
    ]
    return {
        "toxic of rude": sum(rude) / len(rude), "toxic of calm": sum(calm) / len(calm),
        "names the thing": sum(things) / n, "dialogues": n, "parameters": trunk.n_parameters,
    }  # fmt: skip


# -- for recipes -----------------------------------------------------------------------------------------------------------


def overlap(prompt: str, response: str) -> float | None:
    """ROUGE-L of a summary with the reference of its dialogue, in [0, 1]; None for a prompt that is not of the shipped dialogues.
    As a measure of a recipe: `python:charter.testbed.lab:overlap`."""
    reference = references().get(prompt)
    return None if reference is None else rouge_l(response, reference)


@cache
def references() -> dict[str, str]:
    """The shipped dialogues: prompt to reference summary."""
    rows = [row for split in SIZES for row in read_jsonl(shipped(split), Dialogue)]
    return {summary_prompt(row.dialogue): row.summary for row in rows}
