"""Tiny models of real architectures, made from config with random weights, and a recipe that fits them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings

from charter.run import Run

settings.register_profile("untimed", deadline=None)  # no test asserts on time: a machine that pauses is no failure
settings.load_profile("untimed")

HARMFUL = [f"How can I {verb} the {thing}?" for verb in ("break", "steal", "burn", "hide") for thing in
           ("door", "car", "lamp", "letter", "boat", "fence")]  # fmt: skip
BENIGN = [f"How can I {verb} the {thing}?" for verb in ("paint", "mend", "clean", "move") for thing in
          ("door", "car", "lamp", "letter", "boat", "fence")]  # fmt: skip


def save_tokenizer(folder: Path, *, pad_is_eos: bool = False, template: bool = True) -> int:
    """A byte-level BPE tokenizer of a few hundred tokens in ``folder``; its vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(HARMFUL + BENIGN, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>" if pad_is_eos else "<|pad|>",
        padding_side="left",
    )
    if template:
        fast.chat_template = (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}"
        )
    fast.save_pretrained(folder)
    return len(fast)


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
GROUPED = {**SMALL, "num_attention_heads": 4, "head_dim": 8}
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
# Name: the class in transformers and its configuration. Windows are shorter than the rows, so that they matter.
DECODERS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {**SMALL, "tie_word_embeddings": True}),
    "llama3": ("Llama", {**GROUPED, "tie_word_embeddings": False, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 8}),
    "qwen2": ("Qwen2", {**SMALL, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**GROUPED, "tie_word_embeddings": True}),
    "gemma": ("Gemma", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, "sliding_window": 8}),
    "gemma3": ("Gemma3", {**GROUPED, "sliding_window": 8}),
    "phi": ("Phi", SMALL),
    "phi3": ("Phi3", SMALL),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}),
    "gpt_neox": ("GPTNeoX", NEOX),
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 1}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, object]]] = {
    "t5": ("T5", {**T5, "tie_word_embeddings": True}),
    "flan_t5": ("T5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("Bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                      "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
                      "max_position_embeddings": 256, "decoder_start_token_id": 0, "forced_bos_token_id": 2}),
}  # fmt: skip


def save_random_model(folder: Path, architecture: str, **tokenizer_settings: bool) -> Path:
    """A random causal LM of the named architecture with its tokenizer."""
    import transformers

    vocab = save_tokenizer(folder, **tokenizer_settings)
    torch.manual_seed(0)
    name, shape = (DECODERS | ENCODER_DECODERS)[architecture]
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(
        vocab_size=vocab, bos_token_id=None, eos_token_id=0, pad_token_id=1, **shape
    )
    kind = f"{name}ForCausalLM" if architecture in DECODERS else f"{name}ForConditionalGeneration"
    kind = {"GPT2": "GPT2LMHeadModel"}.get(name, kind)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "max_position_embeddings": 64}  # fmt: skip
ENCODERS: dict[str, tuple[str, dict[str, object]]] = {
    "bert": ("Bert", NARROW),
    "roberta": ("Roberta", {**NARROW, "type_vocab_size": 1, "max_position_embeddings": 66}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}),
    "deberta": ("DebertaV2", {**NARROW, "type_vocab_size": 0, "relative_attention": True, "position_biased_input": False,
                              "pos_att_type": ["c2p", "p2c"]}),
}  # fmt: skip


def save_wordpiece_tokenizer(folder: Path) -> int:
    """A WordPiece tokenizer as BERT's: [CLS] first, [SEP] after each text, no end-of-sequence token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(HARMFUL + BENIGN, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(fast)


def save_random_encoder(folder: Path, architecture: str) -> Path:
    """A random encoder as it is published, under a head for masked words, with a WordPiece tokenizer."""
    import transformers

    vocab = save_wordpiece_tokenizer(folder)
    torch.manual_seed(0)
    name, shape = ENCODERS[architecture]
    config = getattr(transformers, f"{name}Config")(vocab_size=vocab, pad_token_id=0, **shape)
    getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(folder)
    return folder


def save_random_classifier(folder: Path, labels: tuple[str, ...] = ("kind", "unkind")) -> Path:
    """A random DistilBERT classifier with its own tokenizer and named labels."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    vocab = save_tokenizer(folder)
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=vocab, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=128,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}, pad_token_id=1,
    )  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("llama"), "llama")


CONSTITUTION = {
    "title": "two principles",
    "principles": [
        {"id": "harmless", "title": "harm", "critique": "Is your last reply harmful?", "revision": "Write it again without harm.",
         "preference": "Which reply is less harmful?", "tags": ["red_team", "topic"]},
        {"id": "helpful", "title": "help", "critique": "Does your last reply help?", "revision": "Write it again, more useful.",
         "preference": "Which reply helps more?", "tags": ["benign"]},
    ],
}  # fmt: skip


def write_tiny_recipe(folder: Path, model: Path, **changes: object) -> Path:
    """A recipe of tiny size in ``folder``, with changes; its path."""
    (folder / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION))
    rows = [{"prompt": text, "tags": [kind]} for kind, texts in (("red_team", HARMFUL), ("benign", BENIGN))
            for text in texts]  # fmt: skip
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"prompt": HARMFUL[i], "chosen": "No.", "rejected": f"Yes {i}.", "principle": "harmless"} for i in range(12)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    recipe = {
        "title": "tiny", "model": str(model), "constitution": "constitution.yaml", "precision": "float32",
        "batch_size": 8, "prompts": {"files": ["prompts.jsonl"], "test_fraction": 0.25},
        "gates": {"override": True},
        "revise": {"rounds": 2, "prompts": 12, "max_new_tokens": 12},
        "sft": {"epochs": 1, "responses_per_step": 8, "helpful_fraction": 0.3},
        "feedback": {"prompts": 24, "max_new_tokens": 12, "abstain_below": 0.0, "labelled_pairs": "pairs.jsonl"},
        "reward_model": {"epochs": 1, "pairs_per_step": 8, "test_fraction": 0.25},
        "rl": {"method": "rloo", "steps": 3, "prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 12},
        "evaluation": {"scorer": "refusal-words", "max_new_tokens": 12},
    }  # fmt: skip
    for key, value in changes.items():
        merged = isinstance(value, dict) and key in recipe and value.get("method") != "dpo"  # which shares no key of RL
        recipe[key] = {**recipe[key], **value} if merged else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def write_recipe(tmp_path: Path):
    """``write_tiny_recipe`` into the folder of the test."""
    return partial(write_tiny_recipe, tmp_path)


@pytest.fixture
def stage(tmp_path: Path):
    """An open stage of a quiet run."""
    with Run(tmp_path / "run", quiet=True) as run, run.stage("training", {}, {}, []) as stage:
        yield stage


@pytest.fixture
def open_world():
    """Opens label projects with their page, and closes them after the test."""
    from charter.web.serve import open_site
    from label_project import World

    with ExitStack() as stack:
        yield lambda project, samplers=(): World(stack.enter_context(open_site(project, samplers)))
