"""`charter model import`: a GGUF file becomes a folder with equal weights, the file's marks and the split of its training."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from charter.commands.app import run_command
from charter.models.chat_template import encode_prompt, end_ids
from charter.models.formats.gguf import WHOLE_WORDS, import_gguf, same_factors, set_split, transformers_splits
from charter.models.load import load_tokenizer, marks_of
from charter.records import Message
from charter.testbed.standins import save_stand_in

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

YEARS = ["In 2024 and in 2025:\n\n1. The year 2024.\n\n10. The year 2025.\n"] * 20
REAL = Path(os.environ.get("CHARTER_CACHE", Path(__file__).parents[1] / "cache")) / "smollm2"
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


def llama_order(weights: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection as llama.cpp stores them: halves of a head interleaved."""
    return weights.reshape(heads, 2, -1, weights.shape[-1]).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(model: Path, file: Path, pre: str | None = "smollm", *, quantized: bool = False, **changes: object) -> Path:
    """The model of a Llama or Qwen 2 folder as a GGUF file; ``changes``: more metadata, None leaves a key out."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    words, config = AutoTokenizer.from_pretrained(model), network.config
    name = config.model_type
    tokens = [words.convert_ids_to_tokens(number) for number in range(config.vocab_size)]
    backend = json.loads((model / "tokenizer.json").read_text())["model"]
    metadata: dict[str, object] = {
        "general.name": "tiny", "general.license": "apache-2.0", f"{name}.block_count": config.num_hidden_layers,
        f"{name}.context_length": config.max_position_embeddings, f"{name}.embedding_length": config.hidden_size,
        f"{name}.feed_forward_length": config.intermediate_size, f"{name}.attention.head_count": config.num_attention_heads,
        f"{name}.attention.head_count_kv": config.num_key_value_heads, f"{name}.rope.freq_base": 1e4,
        f"{name}.attention.layer_norm_rms_epsilon": config.rms_norm_eps, f"{name}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in backend["merges"]],
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in tokens],
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.padding_token_id": 1, "tokenizer.chat_template": TEMPLATE,
        "tokenizer.ggml.pre": pre, **changes,
    }  # fmt: skip
    writer = gguf.GGUFWriter(file, name)
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        if value is not None and key != "rope_freqs":
            add[type(value)](key, value)
    if "rope_freqs" in changes:
        writer.add_tensor("rope_freqs.weight", np.asarray(changes["rope_freqs"], dtype=np.float32))
    kind = gguf.MODEL_ARCH.LLAMA if name == "llama" else gguf.MODEL_ARCH.QWEN2
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = "lm_head.weight" if config.tie_word_embeddings else None
    for key, tensor in network.state_dict().items():
        values = tensor.numpy()
        if name == "llama" and ("q_proj" in key or "k_proj" in key):
            values = llama_order(values, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        if key == tied:
            continue
        place = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if quantized and values.ndim == 2:
            blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(place, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(place, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_stand_in(tmp_path_factory.mktemp("llama") / "model", "llama", texts=YEARS)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def refusal(capsys, *arguments: object) -> str:
    capsys.readouterr()  # progress bars of the test's own models
    assert run_command(["model", "import", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2"])
def test_a_round_trip_gives_equal_weights(family, tmp_path):
    model = save_stand_in(tmp_path / "model", family, texts=YEARS)
    file = write_gguf(model, tmp_path / "a.gguf")
    done = import_gguf(file, tmp_path / "out")
    before, after = weights(model), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert done["unread"] == 0
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_8_bit_weights_are_dequantised_and_the_file_is_described(llama, tmp_path, capsys):
    file = write_gguf(llama, tmp_path / "a.gguf", quantized=True)
    assert run_command(["model", "import", str(file), "--out", str(tmp_path / "out")]) == 0
    before, after = weights(llama), weights(tmp_path / "out")
    name = "model.layers.0.mlp.down_proj.weight"
    step = before[name].reshape(-1, 32).abs().amax(1) / 127  # of a block of 32 weights; stored in 16 bits
    assert ((before[name] - after[name]).abs().reshape(-1, 32).amax(1) <= 0.57 * step).all()
    kept = json.loads((tmp_path / "out/gguf.json").read_text())
    assert kept["quantization"] == {"Q8_0": 15, "F32": 5}
    assert (kept["general.name"], kept["general.license"], kept["tokenizer"]) == ("tiny", "apache-2.0", "smollm")
    assert len(kept["sha256"]) == 64
    assert "licence: apache-2.0" in capsys.readouterr().out


def pieces(folder: Path, text: str) -> list[str]:
    tokenizer = load_tokenizer(str(folder))
    return [tokenizer.decode([number]) for number in tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_digits_are_split_as_in_training(llama, tmp_path):
    import_gguf(write_gguf(llama, tmp_path / "a.gguf", "smollm"), tmp_path / "smollm")
    import_gguf(write_gguf(llama, tmp_path / "b.gguf", "gpt-2"), tmp_path / "gpt-2")
    assert pieces(tmp_path / "gpt-2", " 2024\n\n1.") == [" 2024", "\n", "\n", "1", "."]
    assert pieces(tmp_path / "smollm", " 2024\n\n1.") == [" ", "2", "0", "2", "4", "\n", "\n", "1", "."]


@pytest.mark.parametrize(
    ("pre", "parts"),
    [
        ("gpt-2", ["It", "'s", "Ġ2024", ":", "Ċ", "Ċ", "12345", ".", "Ġa"]),
        ("smollm", ["It", "'s", "Ġ", "2", "0", "2", "4", ":", "ĊĊ", "1", "2", "3", "4", "5", ".", "Ġa"]),
        ("deepseek-v3", ["It", "'s", "Ġ", "202", "4", ":ĊĊ", "123", "45", ".", "Ġa"]),
    ],
)
def test_the_split_of_each_kind_of_tokenizer(pre, parts, llama):
    backend = AutoTokenizer.from_pretrained(llama).backend_tokenizer
    set_split(backend, pre)
    assert [part for part, _ in backend.pre_tokenizer.pre_tokenize_str("It's 2024:\n\n12345. a")] == parts


def test_whole_words_need_no_merges(llama):
    assert {"llama-bpe", "tekken"} <= WHOLE_WORDS
    backend = AutoTokenizer.from_pretrained(llama).backend_tokenizer
    set_split(backend, "llama-bpe")
    assert backend.model.ignore_merges


@pytest.mark.skipif(not transformers_splits(), reason="this version of transformers sets no splits")
def test_llama_3_takes_digits_by_threes(llama, tmp_path):
    import_gguf(write_gguf(llama, tmp_path / "a.gguf", "llama-bpe"), tmp_path / "out")
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    found = [part for part, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("It's 12345")]
    assert found == ["It", "'s", "Ġ", "123", "45"]


def test_ends_and_pad_are_those_of_the_file(llama, tmp_path):
    import_gguf(write_gguf(llama, tmp_path / "a.gguf", **{"tokenizer.ggml.eot_token_id": 3}), tmp_path / "out")
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert marks_of(str(tmp_path / "out")) == ([0, 3], None)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|end|>", "<|pad|>", None)
    assert set(end_ids(tokenizer)) == {0, 3}
    rendered = tokenizer.decode(encode_prompt(tokenizer, [Message(role="user", content="1")]))
    assert rendered == "<|user|>1<|end|><|assistant|>"
    import_gguf(write_gguf(llama, tmp_path / "b.gguf", **{"tokenizer.ggml.padding_token_id": None}), tmp_path / "end")
    assert load_tokenizer(str(tmp_path / "end")).pad_token == "<|end|>"


def factors(rope: dict[str, float], size: int) -> list[float]:
    """Llama 3's divisors, from transformers' inverse frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(head_dim=2 * size, hidden_size=2 * size, num_attention_heads=1, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = rope["rope_theta"] ** -(torch.arange(size) / size)
    return (plain / scaled).tolist()


def test_llama_3_1_keeps_its_scaling_of_positions(llama, tmp_path, capsys):
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 5e5}  # fmt: skip
    divisors = factors(rope, 32)
    assert same_factors(rope, tuple(divisors))
    assert not same_factors({**rope, "factor": 8.0}, tuple(divisors))
    assert not same_factors({**rope, "rope_theta": 1e4}, tuple(divisors))
    changes = {"llama.rope.freq_base": 5e5, "rope_freqs": factors(rope, 8)}
    import_gguf(write_gguf(llama, tmp_path / "a.gguf", **changes), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["rope_parameters"] == rope
    other = write_gguf(llama, tmp_path / "b.gguf", rope_freqs=[1.0, 1, 1, 1, 1, 1, 2, 3])
    assert "rope_freqs.weight" in refusal(capsys, other, "--out", tmp_path / "no")


def sentence_pieces(size: int) -> dict[str, object]:
    """Metadata of a SentencePiece tokenizer: bytes, letters, and "ab" as a merge."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "ab", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = (pieces + [f"[PAD{number}]" for number in range(size)])[:size]
    types = [2, 3, 3] + [6] * 256 + [1] * (size - 259)
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": None,
        "tokenizer.ggml.scores": [float(-number) for number in range(size)], "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.pre": "default",
    }  # fmt: skip


def test_sentence_pieces_need_no_split(llama, tmp_path, capsys):
    size = AutoModelForCausalLM.from_pretrained(llama).config.vocab_size
    changes = sentence_pieces(size)
    import_gguf(write_gguf(llama, tmp_path / "a.gguf", **changes), tmp_path / "out")
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab é")["input_ids"]) == ["<s>", "▁", "ab", "▁", "<0xC3>", "<0xA9>"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    other = write_gguf(llama, tmp_path / "b.gguf", **changes, **{"tokenizer.ggml.add_space_prefix": False})
    assert "puts a space before a text" in refusal(capsys, other, "--out", tmp_path / "no")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.pre": "chatglm-bpe"}, "how such a tokenizer splits texts is unknown; take the original"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is 'missing'"),
        ({"tokenizer.ggml.tokens": None, "tokenizer.ggml.merges": None}, "no tokenizer; take the original"),
        ({"llama.rope.scaling.type": "yarn"}, "positions are scaled by 'yarn'"),
    ],
)
def test_a_file_that_would_read_wrong_is_refused(changes, words, llama, tmp_path, capsys):
    file = write_gguf(llama, tmp_path / "a.gguf", **changes)
    assert words in refusal(capsys, file, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_original_tokenizer_takes_the_place_of_an_unknown_one(llama, tmp_path):
    file = write_gguf(llama, tmp_path / "a.gguf", "chatglm-bpe")
    import_gguf(file, tmp_path / "out", tokenizer_of=str(llama))
    assert json.loads((tmp_path / "out/gguf.json").read_text())["tokenizer"] == str(llama)
    text = "In 2024:\n\n1."
    assert pieces(tmp_path / "out", text) == pieces(llama, text)


def test_what_is_not_a_whole_gguf_file_is_refused_in_one_line(llama, tmp_path, capsys, monkeypatch):
    whole = write_gguf(llama, tmp_path / "a.gguf")
    out = ("--out", tmp_path / "out")
    for size in (30, 400, whole.stat().st_size - 100):
        (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:size])
        assert "truncated or damaged" in refusal(capsys, tmp_path / "cut.gguf", *out)
    (tmp_path / "text.gguf").write_text("hello, I am a text")
    assert "not a GGUF file" in refusal(capsys, tmp_path / "text.gguf", *out)
    assert "no such file" in refusal(capsys, tmp_path / "none.gguf", *out)
    other = tmp_path / "other.gguf"
    other.write_bytes(whole.read_bytes().replace(b"llama", b"xlama"))
    assert "cannot read the architecture 'xlama'" in refusal(capsys, other, *out)
    (tmp_path / "taken").mkdir()
    assert "exists already" in refusal(capsys, whole, "--out", tmp_path / "taken")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "charter-align[gguf]" in refusal(capsys, whole, *out)


@pytest.mark.skipif(not REAL.is_dir(), reason="no SmolLM2; make real imports it")
def test_the_real_model_has_the_tokens_of_its_training():
    tokenizer = load_tokenizer(str(REAL))
    ids = tokenizer("\n\n1. 2024", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([number]) for number in ids] == ["\n\n", "1", ".", " ", "2", "0", "2", "4"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert marks_of(str(REAL)) == ([2], 1)
