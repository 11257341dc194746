"""The fused decoder is the model: token for token what `generate` gives, whatever the padding, the groups and the adapters."""

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from charter.models.llama.decode import FusedLlama
from charter.models.llama.static import StaticLlama
from charter.models.llama.weights import LinearRows, Matrix, is_llama_like
from charter.models.packing import Tokens
from charter.models.sampling import generate
from charter.models.sampling.generate import TransformersDecoder, sample
from charter.models.trunk import REFERENCE, load_trunk
from charter.recipe.settings import LoRASettings

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97,
         "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=4, tie_word_embeddings=True)),
    "llama, one key for four queries": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)),
    "llama 3 positions": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, num_key_value_heads=2, rope_parameters=LLAMA3, attention_bias=True)
    ),
    "qwen 2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None)),
}
PROMPTS = [[5, 9, 12, 40, 7], [3], [8, 8, 30, 31, 32, 33, 34, 35], [60, 61]]


def model_of(name: str):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for key, parameter in model.named_parameters():  # biases and norms of a new model are zeros and ones, which hide mistakes
        if key.endswith("bias") or "norm" in key:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in key else 0.0, std=0.3)
    return model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_greedy_tokens_are_those_of_generate(name):
    model = model_of(name)
    assert is_llama_like(model)
    found = sample(model, PROMPTS, [[0]] * 4, ends=[0], max_new_tokens=20, temperature=0.0)
    for prompt, (one,) in zip(PROMPTS, found, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=20, eos_token_id=0, pad_token_id=1,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert list(one.ids) == expected


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("k", [1, 5])
def test_the_decoder_of_one_shape_gives_the_same_samples_while_rows_are_dropped(name, k, monkeypatch):
    model = model_of(name)
    seeds = [[17 * i + j for j in range(k)] for i in range(4)]
    arguments = {"ends": [3, 8, 30], "max_new_tokens": 30, "temperature": 0.8}
    expected = sample(model, PROMPTS, seeds, **arguments)
    assert any(one.finished for group in expected for one in group)
    monkeypatch.setattr(generate, "FusedLlama", StaticLlama)  # which a GPU takes
    static = sample(model, PROMPTS, seeds, **arguments)
    for group, others in zip(static, expected, strict=True):
        for one, other in zip(group, others, strict=True):
            assert (one.ids, one.finished) == (other.ids, other.finished)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("k", [1, 5])
def test_samples_are_those_of_the_general_decoder_while_rows_end_one_by_one(name, k, monkeypatch):
    model = model_of(name)
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    seeds = [[17 * i + j for j in range(k)] for i in range(4)]
    arguments = {"ends": [3], "max_new_tokens": 30, "temperature": 0.8}
    fused = sample(model, PROMPTS, seeds, **arguments)
    monkeypatch.setattr(generate, "is_llama_like", lambda _: False)
    general = sample(model, PROMPTS, seeds, **arguments)
    assert [[one.ids for one in group] for group in fused] == [[one.ids for one in group] for group in general]
    assert any(one.finished for group in fused for one in group) or k == 1
    for group, others in zip(fused, general, strict=True):
        for one, other in zip(group, others, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_logits_after_each_step_are_those_of_the_model_on_the_whole_text(shared):
    model = model_of("llama, one key for four queries")
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        decoder = FusedLlama(model, PROMPTS, 2, 6, torch.float32)
        rows = torch.arange(8)
        texts = [list(prompt) for prompt in PROMPTS for _ in range(2)]
        now = decoder.logits
        for step in range(6):
            for row, logits in zip(rows.tolist(), now, strict=True):
                expected = model(input_ids=torch.tensor([texts[row]])).logits[0, -1]
                torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
            tokens = torch.randint(0, 97, (len(rows),), generator=generator)
            if not shared and step in (1, 3):
                kept = torch.arange(0, len(rows), 1 + (step == 1))
                decoder.keep(kept)
                rows, tokens = rows[kept], tokens[kept]
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                texts[row].append(token)
            now = decoder.step(tokens)


def test_log_probabilities_of_sampling_are_those_of_training(random_llama):
    trunk = load_trunk(str(random_llama))
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12]]
    with trunk.as_role(REFERENCE) as model:
        groups = sample(model, prompts, [[1, 2], [3, 4], [5, 6]], ends=[0], max_new_tokens=12, temperature=0.9)
    for prompt, group in zip(prompts, groups, strict=True):
        for one in group:
            packed = trunk.pack([Tokens(prompt, one.ids)])
            logprobs, _ = trunk.logprobs(REFERENCE, packed, temperature=0.9)
            assert logprobs[packed.mask].tolist() == pytest.approx(one.logprobs, abs=1e-5)


def test_adapters_are_merged_in_for_their_role_and_left_out_for_the_reference(random_llama, monkeypatch):
    trunk = load_trunk(str(random_llama), lora=LoRASettings(rank=2))
    for role in ("policy", "other"):
        trunk.add_role(role)
        for parameter in trunk.parameters(role).values():
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(role)))
    arguments = {"ends": [0], "max_new_tokens": 12, "temperature": 1.0}
    found = {}
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(generate, "is_llama_like", lambda _: False)
        for role in (REFERENCE, "policy", "other"):
            with trunk.as_role(role) as model:
                found[role, fused] = sample(model, PROMPTS, [[1, 2]] * 4, **arguments)
    for role in (REFERENCE, "policy", "other"):
        assert [one.ids for group in found[role, True] for one in group] == [
            one.ids for group in found[role, False] for one in group
        ]
    assert found["policy", True] != found[REFERENCE, True] != found["other", True]


def test_other_models_go_the_general_way():
    torch.manual_seed(0)
    gemma = GemmaForCausalLM(GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=16))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=97, n_positions=64))
    window = MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4))
    dynamic = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    for model in (gemma, gpt2, window, dynamic):
        assert not is_llama_like(model)
        decoder = generate.make_decoder(model.eval(), PROMPTS, 1, 4, torch.float32)
        assert isinstance(decoder, TransformersDecoder)


def test_bfloat16_stays_near_float32():
    model = model_of("llama")
    with torch.inference_mode():
        exact = FusedLlama(model, PROMPTS, 1, 4, torch.float32).logits
        rough = FusedLlama(model, PROMPTS, 1, 4, torch.bfloat16).logits.float()
    assert (exact - rough).abs().mean() < 0.02 * exact.std()


def test_a_matrix_is_the_same_for_a_decoder_and_for_training_whichever_comes_first():
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator) for shape in ((24, 16), (3, 16)))
    gain = torch.rand(16, generator=generator)
    first, second = (Matrix((LinearRows(weight, scale=0.5),), gain, torch.bfloat16) for _ in range(2))
    expected = (weight * 0.5 * gain).bfloat16()
    for decoded in (first.packed(x.bfloat16()), second(x.bfloat16()), second.packed(x.bfloat16())):
        torch.testing.assert_close(decoded, x.bfloat16() @ expected.t())
    for matrix in (first, second):
        assert torch.equal(matrix.weight, expected)
        torch.testing.assert_close(matrix.packed(x.bfloat16()), x.bfloat16() @ expected.t())
