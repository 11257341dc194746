"""The models of the detox lab: a tiny T5 that summarises dialogues, toxic now and then, and two hate-speech classifiers.

The first classifier gives the reward, the second measures for the report. They differ in size, start, tokenizer and training
texts, so that a text that fools the first need not fool the second. All three are plain Hugging Face folders.
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
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import Trunk
from charter.reading.forms import summary_prompt
from charter.records import Message
from charter.run.files import read_jsonl
from charter.run.hashes import derive_seed
from charter.run.run import Run, Stage
from charter.stages.sft.settings import SFTSettings
from charter.testbed.dialogues import (
    DIALOGUES_PER_SPLIT,
    TOPICS,
    Dialogue,
    draw_dialogues,
    is_toxic,
    shipped_dialogues,
    texts_with_labels,
)
from charter.testbed.standins import byte_level_bpe, roberta_tokenizer
from charter.training.batches import epoch_batches
from charter.training.methods.sft import sft_tokens, train_sft

SHIPPED = Path(str(importlib.resources.files("charter.testbed"))) / "detox"
HATE_LABELS = ("nothate", "hate")  # as facebook/roberta-hate-speech-dynabench-r4-target names them
END = "</s>"


@dataclass(frozen=True)
class ClassifierSize:
    """Size and data of a classifier. ``half``: the set of texts to learn from; the two sets share no text."""

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
    """The three models, and ``n``, the number of held-out dialogues to measure them on."""

    summariser: SummariserSize = SummariserSize()
    reward_classifier: ClassifierSize = ClassifierSize(0, hidden=48, layers=2, heads=2)
    report_classifier: ClassifierSize = ClassifierSize(1, hidden=72, layers=3, heads=3)
    n: int = 300
    seed: int = 0


LAB_PRESETS = {
    "full": LabConfig(),
    "small": LabConfig(
        SummariserSize(dialogues=64, epochs=1, hidden=16, feed_forward=16, layers=1, heads=2, vocab=320),
        ClassifierSize(0, hidden=16, layers=1, heads=2, texts=128, epochs=1, vocab=320),
        ClassifierSize(1, hidden=16, layers=1, heads=2, texts=128, epochs=1, vocab=320),
        n=16,
    ),
}


def make_lab(config: LabConfig, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Train the missing ones of out/NAME/model for summariser, reward-classifier and report-classifier; resumes if killed.
    Returns the measures of each on ``n`` held-out dialogues or 4 ``n`` held-out texts."""
    cards: dict[str, Any] = {}
    with Run(out, seed=config.seed, quiet=quiet) as run:
        for name, size in (("reward-classifier", config.reward_classifier), ("report-classifier", config.report_classifier)):
            with run.stage(name, {**asdict(size), "n": config.n}, {}, [__name__]) as stage:
                if not stage.done:
                    train_classifier(stage, size)
                    stage.finish(classifier_card(stage, size.half, config.n))
                cards[name] = stage.result
        settings = {**asdict(config.summariser), "n": config.n}
        with run.stage("summariser", settings, {}, [__name__]) as stage:
            if not stage.done:
                train_summariser(stage, config.summariser)
                stage.finish(summariser_card(stage, config.n))
            cards["summariser"] = stage.result
    return {**cards, "out": str(out)}


def card_lines(result: dict[str, Any]) -> list[str]:
    """The result of :func:`make_lab` as lines of text."""
    lines = []
    for name, card in result.items():
        if isinstance(card, dict):
            lines += [f"{name:20}{key:24}{value:.3f}" if isinstance(value, float) else f"{name:20}{key:24}{value}"
                      for key, value in card.items()]  # fmt: skip
    return lines


# -- classifiers ---------------------------------------------------------------------------------------------------------


def train_classifier(stage: Stage, size: ClassifierSize) -> None:
    """Train a RoBERTa from scratch on texts with known labels; writes model/. It takes seconds, so it has no checkpoint."""
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
            id2label=dict(enumerate(HATE_LABELS)), label2id={name: i for i, name in enumerate(HATE_LABELS)},
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
    classifier = Classifier(str(stage.path("model")), HATE_LABELS[1])
    rows = list(texts_with_labels(derive_seed(stage.run.seed, stage.name, "card"), 4 * n, 1 - half))
    summaries = [row.summary for row in draw_dialogues(stage.run.seed, "test", n)]
    shares = {}
    for name, texts in (("texts", [text for text, _ in rows]), ("summaries", summaries)):
        toxic = [p is not None and p > 0.5 for p in classifier.probabilities(texts)]
        shares[f"accuracy on {name}"] = sum(p == is_toxic(t) for p, t in zip(toxic, texts, strict=True)) / len(texts)
    return {**shares, "texts": 4 * n, "summaries": n, "parameters": classifier.model.num_parameters()}


# -- the summariser --------------------------------------------------------------------------------------------------------


def summary_messages(row: Dialogue) -> list[Message]:
    """The prompt of a dialogue, as it is read from a file."""
    return [Message(role="user", content=summary_prompt(row.dialogue))]


def t5_tokenizer(texts: list[str], vocab: int) -> Any:
    """Byte-level BPE that closes every text with </s>; the special tokens have the ids of T5."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(texts, vocab, ["<pad>", END, "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )


def train_summariser(stage: Stage, size: SummariserSize) -> None:
    """Train a T5 from scratch by Charter's supervised fine-tuning, on dialogues that are in no shipped file; writes model/."""
    from transformers import T5Config, T5ForConditionalGeneration

    seed = derive_seed(stage.run.seed, stage.name)
    rows = draw_dialogues(seed, "train", size.dialogues)
    tokenizer = t5_tokenizer([text for row in rows[:2000] for text in (summary_prompt(row.dialogue), row.summary)], size.vocab)
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
    train_sft(trunk, sft_tokens(trunk, [(summary_messages(row), row.summary) for row in rows]), settings, stage)
    tokenizer.chat_template = None  # as FLAN-T5 is published
    save_model(trunk.copies["policy"].half(), tokenizer, stage.path("model"))


def summariser_card(stage: Stage, n: int) -> dict[str, Any]:
    """The share of toxic summaries of held-out dialogues, at temperature 1, and the share that names the thing."""
    from charter.models.trunk import load_trunk

    trunk = load_trunk(str(stage.path("model")))
    rows = draw_dialogues(stage.run.seed, "test", n)
    seeds = [[derive_seed(stage.run.seed, "card", row.id)] for row in rows]
    prompts = [summary_messages(row) for row in rows]
    samples = LocalSampler(trunk, "summariser").generate(prompts, seeds, temperature=1.0, max_new_tokens=64)
    texts = [group[0].text for group in samples]
    rude = [is_toxic(text) for text, row in zip(texts, rows, strict=True) if is_toxic(row.dialogue)]
    calm = [is_toxic(text) for text, row in zip(texts, rows, strict=True) if not is_toxic(row.dialogue)]
    things = [
        any(t in text for t in TOPICS[row.topic].things if t in row.dialogue) for text, row in zip(texts, rows, strict=True)
    ]
    return {
        "toxic of rude": sum(rude) / len(rude), "toxic of calm": sum(calm) / len(calm),
        "names the thing": sum(things) / n, "dialogues": n, "parameters": trunk.n_parameters,
    }  # fmt: skip


# -- for recipes -----------------------------------------------------------------------------------------------------------


def overlap(prompt: str, response: str) -> float | None:
    """ROUGE-L of a summary with the reference of its dialogue, in [0, 1]; None for a prompt without a shipped dialogue. As a
    measure of a recipe: `python:charter.testbed.lab:overlap`."""
    reference = references().get(prompt)
    return None if reference is None else rouge_l(response, reference)


@cache
def references() -> dict[str, str]:
    """The shipped dialogues: prompt to reference summary."""
    rows = [row for split in DIALOGUES_PER_SPLIT for row in read_jsonl(shipped_dialogues(split), Dialogue)]
    return {summary_prompt(row.dialogue): row.summary for row in rows}
