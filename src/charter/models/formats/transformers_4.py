"""Folders that transformers 4 reads as well as transformers 5, which wrote them: tools such as RewardBench 0.1.4 pin the older.

Transformers 5 renamed a class of tokenizers, a key with special tokens and the settings of rotary positions. Transformers 4 stops
at the first two and silently takes its default for the third. Transformers 5 still reads the old names.
"""

from __future__ import annotations

from pathlib import Path

from charter.run.files import read_json, write_json


def add_names_of_transformers_4(folder: Path) -> None:
    """Write the names of transformers 4 beside those of transformers 5 into the settings of a model and of its tokenizer."""
    settings = read_json(folder / "config.json")
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # a dictionary for each kind of layer has no name in transformers 4
        settings["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            settings["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        write_json(folder / "config.json", settings)
    file = folder / "tokenizer_config.json"
    named = read_json(file)
    if named.get("tokenizer_class") == "TokenizersBackend":
        named["tokenizer_class"] = "PreTrainedTokenizerFast"
        named.setdefault("model_input_names", ["input_ids", "attention_mask"])  # transformers 4 adds types of tokens
    if isinstance(named.get("extra_special_tokens"), list):
        named["additional_special_tokens"] = named.pop("extra_special_tokens")
    write_json(file, named)
