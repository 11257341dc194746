"""Folders that transformers 4 reads as well as transformers 5, which wrote them: tools such as RewardBench 0.1.4 pin the older.

Transformers 5 renamed a class of tokenizers, a key with special tokens and the settings of rotary positions. Transformers 4 stops
at the first two and silently takes its defaults for the third. Transformers 5 still reads the old names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charter.run.files import read_json, write_json


def add_names_of_transformers_4(folder: Path) -> None:
    """Write the names of transformers 4 beside those of transformers 5 into the settings of a model and of its tokenizer."""
    settings = read_json(folder / "config.json")
    if old := old_rope(settings.get("rope_parameters"), settings.get("model_type")):
        write_json(folder / "config.json", settings | old)
    file = folder / "tokenizer_config.json"
    named = read_json(file)
    if named.get("tokenizer_class") == "TokenizersBackend":
        named["tokenizer_class"] = "PreTrainedTokenizerFast"
        named.setdefault("model_input_names", ["input_ids", "attention_mask"])  # transformers 4 adds types of tokens
    if isinstance(named.get("extra_special_tokens"), list):
        named["additional_special_tokens"] = named.pop("extra_special_tokens")
    write_json(file, named)


def old_rope(rope: Any, family: str | None) -> dict[str, Any]:
    """The settings of rotary positions by the names of transformers 4, of which GPT-NeoX has its own, and Gemma 3 one for its
    local layers. Empty without such positions."""
    if not isinstance(rope, Mapping):
        return {}
    local: dict[str, Any] = {}
    if isinstance(rope.get("sliding_attention"), Mapping):  # one dictionary for each kind of layer
        local = {"rope_local_base_freq": rope["sliding_attention"].get("rope_theta")}
        rope = rope.get("full_attention") or {}
    if "rope_theta" not in rope:
        return {}
    old = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope} | local
    if rope.get("rope_type", "default") != "default":
        old["rope_scaling"] = {key: value for key, value in rope.items() if key not in old}
    if family == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        old |= {names[key]: value for key, value in old.items() if key in names}
    return old
