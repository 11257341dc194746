"""`charter model import`: the model of a GGUF file as a plain Hugging Face folder.

transformers reads and dequantises the file. Two things are put right: transformers refuses to save what it read; and where it
does not know how the tokenizer parts a text before the merges (``tokenizer.ggml.pre``), it parts it as GPT-2 does, which gives
other tokens than in training.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import torch

from charter.errors import InputError
from charter.models.load import check_vocabulary, first_line, quiet_transformers, raw_tokenizer, save_model
from charter.run.seals import sha256_of

METADATA = "gguf.json"
PROBE = "\n\n1. In 2024, it's  10,000 (naïve) 汉字!\r\n"
"""A text that most splits part differently."""

DIGITS = "digits"
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (),
    "phi-2": (),
    "smollm": (DIGITS,),
    "starcoder": (DIGITS,),
    "refact": (DIGITS,),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
"""How a tokenizer parts a text before its merges, by ``tokenizer.ggml.pre`` (llama.cpp's names): regular expressions; or GPT-2's
split, after single digits are parted where :data:`DIGITS` says so. transformers knows some others."""
WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
"""Tokenizers that take a piece that is a token as it stands, without merging (llama.cpp's ``ignore_merges``)."""


@dataclass(frozen=True)
class GGUF:
    """What a file says of itself: ``metadata`` without the vocabulary, ``types`` and ``sizes`` of its tensors by name."""

    file: Path
    metadata: dict[str, Any]
    types: dict[str, str]
    sizes: dict[str, int]
    rope_factors: tuple[float, ...]
    tokens: int
    """Size of the vocabulary; 0 where the file has no tokenizer."""

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def token_id(self, name: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return None if value is None else int(value)


def read_gguf(file: Path) -> GGUF:
    """Metadata and tensor table. InputError if the package is missing, or the file is missing, not GGUF, or damaged."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(
            "GGUF needs the package gguf, which is missing; install it with: pip install 'charter-align[gguf]'"
        ) from None
    if not file.is_file():
        raise InputError("no such file; give a GGUF file", file=file)
    with open(file, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError("not a GGUF file; give a file that begins with GGUF", file=file)
    try:
        reader = GGUFReader(file)
        arrays = ("tokens", "token_type", "merges", "scores")
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.endswith(arrays)}
        vocabulary = reader.fields.get("tokenizer.ggml.tokens")
    except Exception as error:  # the reader raises what numpy raises on the bytes that it meets
        raise InputError(f"the file is truncated or damaged ({first_line(error)}); download it again", file=file) from None
    return GGUF(
        file=file,
        metadata=metadata,
        types={tensor.name: tensor.tensor_type.name for tensor in reader.tensors},
        sizes={tensor.name: int(tensor.n_elements) for tensor in reader.tensors},
        rope_factors=tuple(float(x) for t in reader.tensors if t.name == "rope_freqs.weight" for x in t.data),
        tokens=len(vocabulary.data) if vocabulary else 0,
    )


def import_gguf(file: Path, out: Path, *, tokenizer_of: str | None = None) -> dict[str, Any]:
    """Write the model of a GGUF file to the new folder ``out``: safetensors in float32, tokenizer, template, ends, and
    ``gguf.json`` with what the file says of itself. Returns a summary.

    ``tokenizer_of``: a folder or hub name whose tokenizer takes the place of the file's. InputError if ``out`` exists and for
    whatever cannot be read as it was trained: the architecture, a scaling of positions, the tokenizer's split.
    """
    if out.exists():
        raise InputError("the folder exists already; choose another --out", file=out)
    source = read_gguf(file)
    if tokenizer_of is None:
        check_split(source)
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.gguf"  # alone in a folder: transformers also reads what lies beside the file
        link.symlink_to(file.resolve())
        model = plain_model(source, link)
        tokenizer = raw_tokenizer(tokenizer_of) if tokenizer_of else tokenizer_in(source, link)
        check_saved(tokenizer, Path(folder) / "tokenizer", source)
    mark(model, tokenizer, source)
    check_vocabulary(model, tokenizer, str(file))
    parameters = sum(tensor.numel() for tensor in model.parameters())
    kept = {
        "file": file.name,
        "sha256": sha256_of(file),
        "tokenizer": tokenizer_of or source.metadata.get("tokenizer.ggml.pre"),
        "quantization": dict(Counter(source.types.values())),
        "unread": unread(source, parameters),
        **{name: value for name, value in source.metadata.items() if name.startswith("general.")},
    }
    save_model(model, tokenizer, out, extra={METADATA: kept})
    return {"out": str(out), "parameters": parameters, **kept}


def unread(source: GGUF, parameters: int) -> int:
    """Number of weights in the file that are not in the model: of heads or layers that transformers leaves out."""
    return sum(source.sizes.values()) - len(source.rope_factors) - parameters


def plain_model(source: GGUF, link: Path) -> Any:
    """The model with its weights in float32, of the class that transformers has for the architecture and without its quantizer.
    InputError if transformers cannot read it or would fill weights with random numbers."""
    import transformers

    kind = "AutoModelForSeq2SeqLM" if source.architecture == "t5" else "AutoModelForCausalLM"
    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own
            read, report = getattr(transformers, kind).from_pretrained(
                str(link.parent), gguf_file=str(link), dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:
        raise InputError(
            f"transformers cannot read the architecture {source.architecture!r}: {first_line(error)}; "
            "convert the original model's safetensors instead", file=source.file,
        ) from None  # fmt: skip
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"weights are missing: {', '.join(missing[:3])}; the file is not a whole model", file=source.file)
    values = read.config.to_dict()
    values.pop("quantization_config", None)
    values.pop("_model_name_or_path", None)
    config = type(read.config).from_dict(values)
    set_positions(config, source)
    with torch.device("meta"):
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model.eval()


def set_positions(config: Any, source: GGUF) -> None:
    """Put back a scaling of positions that transformers leaves out. InputError if it cannot be expressed."""
    scaling = source.metadata.get(f"{source.architecture}.rope.scaling.type", "none")
    if scaling != "none" and source.architecture != "gpt-oss":
        raise InputError(f"positions are scaled by {scaling!r}, which transformers does not read from GGUF; "
                         "convert the original model's safetensors instead", file=source.file)  # fmt: skip
    if not source.rope_factors:
        return
    rope = dict(config.rope_parameters) | {
        "rope_type": "llama3", "factor": max(source.rope_factors), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    if not same_factors(rope, source.rope_factors):
        raise InputError("rope_freqs.weight scales positions in a way other than Llama 3's; "
                         "convert the original model's safetensors instead", file=source.file)  # fmt: skip
    config.rope_parameters = rope


def same_factors(rope: dict[str, Any], factors: tuple[float, ...]) -> bool:
    """Whether Llama 3's rule gives these divisors of the frequencies: 1 for short waves, ``factor`` for long ones, and in between
    an interpolation."""
    for place, factor in enumerate(factors):
        wave = 2 * torch.pi * rope["rope_theta"] ** (place / len(factors))
        turns = rope["original_max_position_embeddings"] / wave
        smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        smooth = min(max(smooth, 0.0), 1.0)
        if not isclose(factor, 1 / ((1 - smooth) / rope["factor"] + smooth), rel_tol=1e-3):
            return False
    return True


REMEDY = "take the original model's tokenizer with --tokenizer FOLDER"


def check_split(source: GGUF) -> None:
    """InputError if the file has no tokenizer, or how its tokenizer parts texts is unknown."""
    pre = source.metadata.get("tokenizer.ggml.pre", "missing")
    if not source.tokens:
        raise InputError(f"the file has no tokenizer; {REMEDY}", file=source.file)
    if source.metadata.get("tokenizer.ggml.model") == "gpt2" and pre not in {*SPLITS, *transformers_splits()}:
        raise InputError(
            f"tokenizer.ggml.pre is {pre!r}: how such a tokenizer splits texts is unknown; {REMEDY}", file=source.file
        )


def tokenizer_in(source: GGUF, link: Path) -> Any:
    """The tokenizer that the file describes, with the split of its training. InputError if transformers cannot build it."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = source.metadata.get("tokenizer.ggml.model")
    try:
        with quiet_transformers():
            read = AutoTokenizer.from_pretrained(str(link.parent), gguf_file=str(link))
    except Exception as error:
        raise InputError(
            f"transformers cannot build the tokenizer {kind!r}: {first_line(error)}; {REMEDY}", file=source.file
        ) from None
    values = json.loads(read.backend_tokenizer.to_str())
    # The class adds the special tokens that it has by default, for which the model has no embedding.
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < source.tokens]
    backend = Tokenizer.from_str(json.dumps(values))
    if kind == "gpt2":
        set_split(backend, source.metadata["tokenizer.ggml.pre"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = source.metadata.get("tokenizer.chat_template")
    if kind != "gpt2" and source.metadata.get("tokenizer.ggml.add_space_prefix") is False and starts_with_space(tokenizer):
        raise InputError(f"the tokenizer puts a space before a text, and in training there was none; {REMEDY}", file=source.file)
    return tokenizer


def transformers_splits() -> set[str]:
    """The values of ``tokenizer.ggml.pre`` whose split this version of transformers sets; none in versions without a table."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def starts_with_space(tokenizer: Any) -> bool:
    ids = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    return bool(str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁"))


def set_split(backend: Any, pre: str) -> None:
    """Part texts as the tokenizer ``pre`` does in training, where transformers does not."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    backend.model.ignore_merges = pre in WHOLE_WORDS
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    if pre not in SPLITS:
        return
    steps = [
        pre_tokenizers.Digits(individual_digits=True) if step == DIGITS else pre_tokenizers.Split(Regex(step), "isolated")
        for step in SPLITS[pre]
    ]
    gpt_2 = SPLITS[pre] in ((), (DIGITS,))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt_2)])


def mark(model: Any, tokenizer: Any, source: GGUF) -> None:
    """Give tokenizer, configuration and generation settings the beginning, ends and pad that the file names."""
    begin, end, turn, pad, unknown = (source.token_id(name) for name in ("bos", "eos", "eot", "padding", "unknown"))
    if end is None:
        end = turn
    pad = end if pad is None else pad
    for name, number in {"bos": begin, "eos": end, "pad": pad, "unk": unknown}.items():
        if number is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(number))
        if name != "unk":
            setattr(model.config, f"{name}_token_id", number)
            setattr(model.generation_config, f"{name}_token_id", number)
    if turn is not None and turn != end:
        model.generation_config.eos_token_id = [end, turn]
    model.generation_config._from_model_config = False


def check_saved(tokenizer: Any, folder: Path, source: GGUF) -> None:
    """InputError if a text has other tokens once the tokenizer is saved and loaded again."""
    tokenizer.save_pretrained(folder)
    again = raw_tokenizer(str(folder))
    if again(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"]:
        raise InputError(f"the tokenizer changes when transformers saves it; {REMEDY}", file=source.file)
