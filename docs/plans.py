"""Write plans.md, the tokens and memory of every shipped recipe: python docs/plans.py. Two minutes on one core, no download.

The plan reads config.json, the headers of weight files, a tokenizer and the recipe's files. Here they are made: configurations of
the published sizes, headers without weights, a tokenizer trained on texts that ship with Charter, and data files with as many
rows as the published ones, of texts about as long.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import struct
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from charter.plan.fit import what_fits
from charter.plan.plan import work_of
from charter.plan.table import amount, data_lines
from charter.recipe.files import load_recipe, shipped
from charter.recipe.recipe import Recipe
from charter.run.progress import size
from charter.stages.load import Counted
from charter.testbed.dialogues import draw_dialogues
from charter.testbed.standins import save_bpe_tokenizer

CARDS = (8e9, 12e9, 16e9, 24e9, 48e9, 80e9, 141e9)  # bytes
NARROW = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
QWEN = {"vocab_size": 151936, "max_position_embeddings": 32768, "num_key_value_heads": 2, "tie_word_embeddings": True}
SEVEN = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
BERT = {**NARROW, "vocab_size": 30522, "max_position_embeddings": 512}
# Name on the hub, or the folder of `make real`: class in transformers, and the sizes that are published with it.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-hf": ("LlamaForCausalLM", {
        **SEVEN, "intermediate_size": 11008, "num_key_value_heads": 32, "max_position_embeddings": 4096}),
    "mistralai/Mistral-7B-Instruct-v0.2": ("MistralForCausalLM", {
        **SEVEN, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 32768,
        "sliding_window": None}),
    "Qwen/Qwen2.5-0.5B": ("Qwen2ForCausalLM", {
        **QWEN, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}),
    "Qwen/Qwen2.5-1.5B-Instruct": ("Qwen2ForCausalLM", {
        **QWEN, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}),
    "cache/smollm2": ("LlamaForCausalLM", {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True}),
    "EleutherAI/pythia-1b-deduped": ("GPTNeoXForCausalLM", {
        "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 8, "max_position_embeddings": 2048}),
    "lvwerra/gpt2-imdb": ("GPT2LMHeadModel", {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}),
    "google/flan-t5-base": ("T5ForConditionalGeneration", {
        "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "facebook/roberta-hate-speech-dynabench-r4-target": ("RobertaForSequenceClassification", {
        **NARROW, "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "unitary/toxic-bert": ("BertForSequenceClassification", {**BERT, "num_labels": 6}),
    "textattack/bert-base-uncased-imdb": ("BertForSequenceClassification", BERT),
    "lvwerra/distilbert-imdb": ("DistilBertForSequenceClassification", {
        "vocab_size": 30522, "dim": 768, "hidden_dim": 3072, "n_layers": 6, "n_heads": 12}),
}  # fmt: skip
# Published rows. Where they are read, and mean tokens of a prompt and of a response.
HH = {"harmless-base": (42_537, 2_312), "helpful-base": (43_835, 2_354)}
TLDR = {"tldr/data/train": 116_722, "tldr/data/test": 6_553, "tldr-preference/data/train": 92_858}
IMDB = 25_000
DIALOGUE, POST = (130, 45), (300, 35)
VOCABULARY = 1_600  # about 4 characters a token of the constitutions, as the models' own tokenizers have on English
CHARS = 3.3  # a token of the made-up texts
DISTINCT = 1_000  # texts that a made-up file repeats, with a number in front


# -- what is made up -----------------------------------------------------------------------------------------------------


@cache
def texts() -> tuple[str, ...]:
    """What ships: principles, worked examples, dialogues and their summaries."""
    read = [file.read_text(encoding="utf-8") for file in sorted(shipped("constitutions").glob("*.yaml"))]
    return (*read, *(text for drawn in draw_dialogues(0, "train", 200) for text in (drawn.dialogue, drawn.summary)))


def make_model(folder: Path, name: str) -> None:
    """A hub model's folder without its weights: configuration, tokenizer, and the header that names tensors and shapes."""
    import torch
    import transformers

    kind, sizes = MODELS[name]
    model_folder = folder / name
    model_folder.mkdir(parents=True)
    with torch.device("meta"):
        model_class = getattr(transformers, kind)
        model = model_class(model_class.config_class(**sizes, **({"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
                                                     if not kind.endswith("Classification") else {})))  # fmt: skip
    model.config.save_pretrained(model_folder)
    if not kind.endswith("Classification"):
        templated = name.startswith(("Qwen", "mistral", "cache"))
        save_bpe_tokenizer(model_folder, texts(), size=VOCABULARY, template=templated, closes=kind.startswith("T5"))
    header, end = {}, 0
    for key, tensor in model.named_parameters():  # tied ones once
        start, end = end, end + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    (model_folder / "model.safetensors").write_bytes(struct.pack("<Q", len(words)) + words)


def make_texts(means: Sequence[float], seed: int) -> list[tuple[str, ...]]:
    """Texts of such mean lengths in tokens, with a spread like that of dialogues: lognormal, most of them short."""
    rng = np.random.default_rng(seed)
    words = " ".join(texts()[: len(texts()) // 2]).replace("#", "").split()
    rows = []
    for _ in range(DISTINCT):
        row = []
        for mean in means:
            tokens = min(mean * math.exp(rng.normal(-0.32, 0.8)), 6 * mean)
            start, left, chosen = int(rng.integers(len(words))), tokens * CHARS, []
            while left > 0:
                chosen.append(words[start % len(words)])
                left, start = left - len(chosen[-1]) - 1, start + 1
            row.append(" ".join(chosen))
        rows.append(tuple(row))
    return rows


def make_data(folder: Path, *, share: float = 1.0) -> None:
    """The files that the recipes name, with a share of the published rows."""
    prompt, response = DIALOGUE
    drawn = make_texts((prompt / 2, prompt / 4, prompt / 4, response, response), seed=1)
    first = 0
    for name, counts in HH.items():
        for part, n in zip(("train", "test"), counts, strict=True):
            file = folder / f"hh-rlhf/{name}/{part}.jsonl.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(file, "wt", compresslevel=1, encoding="utf-8") as stream:
                for i in range(first, first + math.ceil(n * share)):
                    ask, reply, again, chosen, rejected = drawn[i % DISTINCT]
                    dialogue = f"\n\nHuman: {i} {ask}\n\nAssistant: {reply}\n\nHuman: {again}\n\nAssistant: "
                    stream.write(json.dumps({"chosen": dialogue + chosen, "rejected": dialogue + "No. " + rejected}) + "\n")
            first += n
    write_votes(folder / "data/hh", [drawn[i % DISTINCT] for i in range(math.ceil(HH["harmless-base"][1] * share))])
    post, summary = POST
    posts = make_texts((post, summary, summary), seed=2)
    for name, n in TLDR.items():
        several = [(f"POST {name} {i}: {posts[i % DISTINCT][0]}\n\nTL;DR:", *posts[i % DISTINCT][1:])
                   for i in range(math.ceil(n * share))]  # fmt: skip
        columns = ("prompt", "chosen", "rejected") if "preference" in name else ("prompt", "completion")
        write_parquet(folder / f"{name}-00000-of-00001.parquet",
                      {key: [row[at] for row in several] for at, key in enumerate(columns)})  # fmt: skip
    reviews = make_texts((230,), seed=3)
    rows = [f"{i} {reviews[i % DISTINCT][0]}" for i in range(math.ceil(IMDB * share))]
    write_parquet(
        folder / "imdb/plain_text/test-00000-of-00001.parquet", {"text": rows, "label": [i % 2 for i in range(len(rows))]}
    )


def write_votes(folder: Path, dialogues: Sequence[tuple[str, ...]]) -> None:
    """What examples/split_votes.py makes of so many dialogues: 45% of the votes, their prompts, and 10% held out."""
    folder.mkdir(parents=True)
    votes, held_out = dialogues[: int(0.45 * len(dialogues))], dialogues[int(0.9 * len(dialogues)) :]
    asked = [f"\n\nHuman: {i} {row[0]}\n\nAssistant:" for i, row in enumerate(votes)]
    rows = [{"chosen": f"{ask} {row[3]}", "rejected": f"{ask} No. {row[4]}"} for ask, row in zip(asked, votes, strict=True)]
    splits = {"train": votes, "test": held_out}
    prompts = [{"prompt": f"{i} {row[0]}", "split": split} for split, part in splits.items() for i, row in enumerate(part)]
    for name, lines in (("votes", rows), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def write_parquet(file: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


# -- the page ------------------------------------------------------------------------------------------------------------

HEAD = """# What the shipped recipes take

`python docs/plans.py` writes this page and downloads nothing. **Nothing here was measured.** The figures are the upper bounds
of `charter plan RECIPE`: every sampled text has its maximum length, every comparison gives a pair, and memory is that of the
worst moment of each stage. Recipes on hub models are planned for one GPU, those on the testbed's model and on SmolLM2
for a CPU. On your machine, with the model and the data, `charter plan RECIPE` uses your tokenizer and your files and estimates
the time.

Instead of downloads the script uses each model's configuration with its published sizes, the shapes of its weights, and data
files with the published number of rows ({hh_rows} of hh-rlhf, {tldr_rows} of TL;DR, {imdb:,} of imdb) and artificial texts of
about their lengths (prompts of {prompt} and responses of {response} tokens in hh-rlhf, {post} and {summary} in TL;DR). Token
counts come from a byte-pair tokenizer trained on texts that ship with Charter. It gives about 4 characters per token on the
constitutions, like the models' own tokenizers on English. Their own counts will differ by some percent.

A GB is 10⁹ bytes. The driver and the gaps of the allocator take part of a card's memory: if little is left, lower
`batch_size` first.
"""


def planned(name: str) -> tuple[Recipe, Counted, dict[str, Any]]:
    """A recipe's plan. The working folder holds the models and data that it names."""
    recipe = load_recipe(shipped("recipes") / f"{name}.yaml")
    device = "cpu" if "testbed" in recipe.model or "smollm2" in recipe.model else "cuda"
    counted, _, figures = work_of(recipe, device)
    return recipe, counted, figures


def names() -> list[str]:
    return sorted(file.stem for file in shipped("recipes").glob("*.yaml"))


@contextlib.contextmanager
def made_up(*models: str, share: float = 1.0) -> Iterator[None]:
    """A working folder with these models and a share of the data; all models where none is named."""
    with tempfile.TemporaryDirectory() as place:
        for name in models or MODELS:
            make_model(Path(place), name)
        make_data(Path(place), share=share)
        with contextlib.chdir(place):
            yield


def smallest(peak: float) -> str:
    return next((f"{card / 1e9:.0f} GB" for card in CARDS if peak < card), "none of one GPU")


def hint(counted: Counted, peak: float) -> str:
    """The changes with which it fits a card of 24 GB."""
    if peak < 24e9:
        return ""
    words = what_fits(counted, 24e9)
    return f" For 24 GB: {'`' + words.replace(' needs ', '` needs ') if words.startswith('--set') else words}."


def section(name: str, recipe: Recipe, counted: Counted, figures: dict[str, Any]) -> str:
    peak = figures["peak_bytes"]
    worst = next(stage for stage in figures["stages"] if stage["stage"] == figures["peak_stage"])
    parts = ", ".join(f"{key.replace('_', ' ')} {size(value)}" for key, value in worst["memory"].items())
    lora = f"; LoRA trains {amount(figures['adapter_parameters'])}" if figures["adapter_parameters"] else ""
    lines = [
        f"## {name}", "",
        f"{recipe.title}: {model_name(recipe.model)}, {amount(figures['parameters'])} parameters{lora}.", "",
        *(f"- {' '.join(line.split())}" for line in data_lines(figures)), "",
        "| stage | generated | scored | trained on | peak memory |", "|---|---|---|---|---|",
        *(f"| {stage['stage']} | {amount(stage['generated'])} | {amount(stage['scored'])} | {amount(stage['trained'])} | "
          f"{size(stage['peak_bytes'])} |" for stage in figures["stages"]), "",
        f"Peak {size(peak)} in {figures['peak_stage']} ({parts}). Fits 24 GB: {'yes' if peak < 24e9 else 'no'}; 80 GB: "
        f"{'yes' if peak < 80e9 else 'no'}.{hint(counted, peak)}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def model_name(path: str) -> str:
    """The name on the hub of a model that lies in the working folder."""
    name = "/".join(Path(path).parts[-2:])
    return name if name in MODELS else "the testbed's model"


def page() -> str:
    """The whole page."""
    with made_up():
        plans = {name: planned(name) for name in names()}
    head = HEAD.format(
        hh_rows=f"{sum(map(sum, HH.values())):,}", tldr_rows=f"{sum(TLDR.values()):,}", imdb=IMDB,
        prompt=DIALOGUE[0], response=DIALOGUE[1], post=POST[0], summary=POST[1],
    )  # fmt: skip
    rows = [
        f"| [{name}](#{name}) | {model_name(recipe.model)} | {size(plan['peak_bytes'])} | {plan['peak_stage']} | "
        f"{smallest(plan['peak_bytes'])} |"
        for name, (recipe, _, plan) in plans.items()
    ]
    table = ["| recipe | model | peak memory | stage | smallest card |", "|---|---|---|---|---|", *rows]
    return "\n".join([head, "\n".join(table) + "\n", *(section(name, *plan) for name, plan in plans.items())])


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
