"""Stand-ins: random models of real architectures, small enough for a test, each with the tokenizer and template of its family.

They have learned nothing; they serve to take a recipe through every stage without a download. Each is a plain Hugging Face
folder: the architecture's own classes, safetensors, a byte-level or WordPiece tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from charter.errors import InputError
from charter.models.load import quiet_transformers
from charter.testbed.dialogues import draw_dialogues

CONTEXT = 512  # tokens of a decoder; encoders have an eighth
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip
GROUPED = {**SMALL, "num_attention_heads": 4, "head_dim": 8}
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 1}
# Name: the class in transformers and its configuration. Windows are shorter than the rows, so that they matter.
DECODER_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
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
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "gpt_neox": ("GPTNeoX", NEOX),
}  # fmt: skip
ENCODER_DECODER_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", {**T5, "tie_word_embeddings": True}),
    "flan_t5": ("T5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("Bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                      "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
                      "decoder_start_token_id": 0, "forced_bos_token_id": 2}),
}  # fmt: skip
NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", NARROW),
    "roberta": ("Roberta", {**NARROW, "type_vocab_size": 1}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}),
    "deberta": ("DebertaV2", {**NARROW, "type_vocab_size": 0, "relative_attention": True, "position_biased_input": False,
                              "pos_att_type": ["c2p", "p2c"]}),
}  # fmt: skip
CLASSIFIER_FAMILIES = {f"{name}-classifier": name for name in ENCODER_FAMILIES}
FAMILIES = (*DECODER_FAMILIES, *ENCODER_DECODER_FAMILIES, *ENCODER_FAMILIES, *CLASSIFIER_FAMILIES)
# Families that are published as base models have no chat template.
WITHOUT_TEMPLATE = frozenset({"gpt2", "gpt_neox", "phi", *ENCODER_DECODER_FAMILIES})
ROLE_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_stand_in(
    folder: Path,
    family: str,
    *,
    texts: Iterable[str] | None = None,
    template: bool | None = None,
    pad_is_eos: bool = False,
    context: int = CONTEXT,
    labels: Sequence[str] = ("nothate", "hate"),
    seed: int = 0,
) -> Path:
    """Write a random model of a family to ``folder``; returns the folder.

    ``texts``: training texts of the tokenizer, by default the testbed's dialogues. ``template``: whether to add a chat template,
    by default as in the family's base models. ``labels``: of a classifier. InputError if the family is unknown.
    """
    import transformers

    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; use {', '.join(FAMILIES)}")
    if folder.is_file() or (folder / "config.json").exists():
        raise InputError("the folder exists already; name a new one", file=folder)
    architecture = CLASSIFIER_FAMILIES.get(family, family)
    texts = dialogue_texts() if texts is None else texts
    if architecture in ENCODER_FAMILIES:
        save = save_roberta_tokenizer if architecture == "roberta" else save_wordpiece_tokenizer
        vocab = save(folder, texts, context // 8)
    else:
        template = family not in WITHOUT_TEMPLATE if template is None else template
        closes = architecture in ENCODER_DECODER_FAMILIES and not template
        vocab = save_bpe_tokenizer(folder, texts, pad_is_eos=pad_is_eos, template=template, closes=closes)
    name, shape = (DECODER_FAMILIES | ENCODER_DECODER_FAMILIES | ENCODER_FAMILIES)[architecture]
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    if architecture in ENCODER_FAMILIES:
        ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1} if architecture == "roberta" else {"pad_token_id": 0}
    config = getattr(transformers, f"{name}{'Text' if name == 'Gemma3' else ''}Config")(
        vocab_size=vocab, **ids, **shape, **sight_of(architecture, context)
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        if family in CLASSIFIER_FAMILIES:
            config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
            model = getattr(transformers, f"{name}ForSequenceClassification")(config)
        else:
            model = getattr(transformers, class_name(architecture, name))(config)
        model.save_pretrained(folder)
    return folder


def class_name(architecture: str, name: str) -> str:
    """The class with the head of the published family."""
    if architecture in ENCODER_FAMILIES:
        return f"{name}ForMaskedLM"
    if architecture in ENCODER_DECODER_FAMILIES:
        return f"{name}ForConditionalGeneration"
    return "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"


def sight_of(architecture: str, context: int) -> dict[str, int]:
    """The configuration of the context length; empty for T5, whose positions have no end."""
    if architecture in ("t5", "flan_t5"):
        return {}
    if architecture in ENCODER_FAMILIES:
        offset = 2 if architecture == "roberta" else 0  # its positions count from after the pad id
        return {"max_position_embeddings": context // 8 + offset}
    return {"n_positions" if architecture == "gpt2" else "max_position_embeddings": context}


def dialogue_texts() -> list[str]:
    return [text for row in draw_dialogues(0, "train", 200) for text in (row.dialogue, row.summary)]


def save_bpe_tokenizer(
    folder: Path, texts: Iterable[str], *, size: int = 400, pad_is_eos: bool = False, template: bool = True, closes: bool = False
) -> int:
    """Write a byte-level BPE tokenizer of at most ``size`` tokens; returns its size. ``closes``: it ends every text with the end
    token, as T5's does."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(texts, size, ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"])
    if closes:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>" if pad_is_eos else "<|pad|>", padding_side="left"
    )
    if template:
        fast.chat_template = ROLE_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def byte_level_bpe(texts: Iterable[str], vocab: int, special: Sequence[str]) -> Any:
    """Byte-level BPE, trained on ``texts``; the special tokens have the first ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def roberta_tokenizer(texts: Iterable[str], vocab: int, limit: int) -> Any:
    """A tokenizer like RoBERTa's: byte-level BPE, <s> first, </s> after each text, truncation to ``limit`` tokens."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(texts, vocab, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>",
        sep_token="</s>", unk_token="<unk>", mask_token="<mask>", model_max_length=limit,
    )  # fmt: skip


def save_roberta_tokenizer(folder: Path, texts: Iterable[str], limit: int) -> int:
    tokenizer = roberta_tokenizer(texts, 400, limit)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_wordpiece_tokenizer(folder: Path, texts: Iterable[str], limit: int) -> int:
    """Write a WordPiece tokenizer like BERT's: [CLS] first, [SEP] after each text, no end token; returns its size."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=limit,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(fast)
