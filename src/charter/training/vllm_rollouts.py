"""Sampling of rollouts by the trunk itself, or by vLLM with the trunk's weights; a token from vLLM is weighted by its probability
under the trunk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from charter.errors import InputError
from charter.models.architectures import is_encoder_decoder
from charter.models.chat_template import encode_prompt, end_ids
from charter.models.formats.quantize import is_quantized
from charter.models.sampling.generate import Sampled, check_length, sample
from charter.models.sampling.vllm_engine import VLLMEngine
from charter.models.trunk import REFERENCE, Trunk
from charter.records import Prompt, Rollout
from charter.stages.rl.settings import RolloutSettings
from charter.training.advantages import importance_weights


def sample_role(
    trunk: Trunk, role: str, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], settings: RolloutSettings
) -> list[list[Sampled]]:
    """Responses of a role, by Charter's own decoder or by the engine that was put on the trunk."""
    how: Any = {"ends": end_ids(trunk.tokenizer), "max_new_tokens": settings.max_new_tokens,
                "temperature": settings.temperature, "vocabulary": trunk.vocabulary}  # fmt: skip
    if trunk.engine is not None:
        if role != REFERENCE or trunk.engine.holds != REFERENCE:  # what never changes is handed over once
            with trunk.as_role(role):  # some weights are only read when all have been handed over
                trunk.engine.load(trunk.plain_weights(role), role)
        return trunk.engine.sample(prompts, seeds, **how) if prompts else []
    with trunk.as_role(role) as model:
        return sample(model, prompts, seeds, dtype=trunk.dtype, **how) if prompts else []


@contextlib.contextmanager
def engine_for(trunk: Trunk, prompts: Sequence[Prompt], settings: RolloutSettings) -> Iterator[None]:
    """Inside, the roles of the trunk are sampled by vLLM where the settings ask for it. InputError where it cannot serve, and
    for a prompt that is too long: before the first step, not at the one that draws it."""
    longest = max(len(encode_prompt(trunk.tokenizer, prompt.messages)) for prompt in prompts)
    check_length(trunk.room, longest, settings.max_new_tokens)
    if settings.vllm is None:
        yield
        return
    if is_quantized(trunk.model) or is_encoder_decoder(trunk.model):
        raise InputError("serves decoders whose weights are whole; leave it out for this model", field="rl.vllm")
    room = longest + settings.max_new_tokens
    engine = VLLMEngine(trunk.path, settings.vllm, dtype=trunk.dtype, longest=room)
    trunk.engine = engine
    try:
        yield
    finally:
        trunk.engine = None
        engine.close()


def sampler_weights(settings: RolloutSettings, rollout: Rollout, logprobs: Tensor) -> Tensor:
    """Factors of each token's credit (B, T): 1, or the ratio of its probabilities under the policy and under vLLM."""
    if settings.vllm is None:
        return torch.ones_like(logprobs)
    return importance_weights(logprobs, rollout.logprobs, rollout.mask, settings.vllm.importance_cap)


def describe_weights(settings: RolloutSettings, rollout: Rollout, weights: Tensor) -> dict[str, float]:
    """The logged figures of these weights, none without vLLM: their mean over tokens, and the share at the cap."""
    if settings.vllm is None:
        return {}
    of_tokens = weights[rollout.mask]
    return {
        "importance_weight": float(of_tokens.mean()),
        "importance_capped": float((of_tokens >= settings.vllm.importance_cap).float().mean()),
    }
