"""One model, many requests: rows that arrived together are decoded together, and groups of them take turns step by step.

One thread owns the model. It reads waiting requests as one group; a group that arrives while others are being written does not
wait for their end but joins the round of steps. A response is drawn from its own seed as in ``models.generate``, so the other
responses do not change it, up to the last bits of a product whose shape differs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from charter.models.chat_template import end_ids
from charter.models.sampling.filters import ALL_TOKENS, exact_of
from charter.models.sampling.generate import make_decoder, pick
from charter.models.trunk import REFERENCE, Trunk
from charter.records import Filters

Likeliest = tuple[tuple[int, float], ...]
"""Token ids with their log-probabilities (nats), the likeliest first."""


@dataclass(frozen=True)
class Drawn:
    """A token of a response. logprob: nats, at temperature 1 whatever the sampling temperature; finish: why it is the last."""

    id: int
    logprob: float
    likeliest: Likeliest
    finish: Literal["stop", "length"] | None


@dataclass(frozen=True)
class Broken:
    """The work on a request failed."""

    words: str


@dataclass(frozen=True)
class Scored:
    """The tokens of a prompt under the model: log-probability and likeliest tokens at each place but the first."""

    logprobs: tuple[float, ...]
    likeliest: tuple[Likeliest, ...]


@dataclass(eq=False)
class Job:
    """A response to write, or, with ``max_new_tokens`` 0, a prompt to score. The engine's thread calls ``emit`` with every token,
    a score, or the failure; no call comes after ``cancelled`` is set."""

    prompt: Sequence[int]
    max_new_tokens: int
    emit: Callable[[Drawn | Scored | Broken], None]
    seed: int = 0
    temperature: float = 1.0
    filters: Filters = ALL_TOKENS
    top: int = 0
    cancelled: bool = field(default=False, init=False)


class Group:
    """Prompts that are read together, and their rows."""

    def __init__(self, model: Any, jobs: Sequence[Job], ends: Sequence[int], dtype: torch.dtype, vocabulary: int | None) -> None:
        longest = max(job.max_new_tokens for job in jobs)
        self.jobs, self.ends, self.vocabulary, self.step_number = list(jobs), ends, vocabulary, 0
        self.decoder = make_decoder(model, [job.prompt for job in jobs], 1, longest, dtype)
        self.logits = self.decoder.logits[:, :vocabulary]
        device = self.logits.device
        self.uniforms = torch.zeros(len(jobs), longest, dtype=torch.float64)
        for row, job in enumerate(jobs):
            drawn = np.random.default_rng(job.seed).random(job.max_new_tokens)
            self.uniforms[row, : job.max_new_tokens] = torch.from_numpy(drawn)
        self.uniforms = self.uniforms.to(device, exact_of(device))
        self.temperature = torch.tensor([job.temperature for job in jobs], device=device)

    def step(self) -> bool:
        """Draw one token for every row; whether any row is unfinished."""
        filters = [job.filters for job in self.jobs]
        choice = draw_tokens(self.logits, self.uniforms[:, self.step_number], self.temperature, filters)
        self.step_number += 1
        logprobs = torch.log_softmax(self.logits.float(), dim=-1)
        chosen = logprobs.gather(1, choice.unsqueeze(1)).squeeze(1).tolist()
        likeliest = likeliest_of(logprobs, [job.top for job in self.jobs])
        unfinished = []
        for row, (job, token) in enumerate(zip(self.jobs, choice.tolist(), strict=True)):
            if job.cancelled:
                continue
            last = self.step_number == job.max_new_tokens
            finish: Literal["stop", "length"] | None = "stop" if token in self.ends else "length" if last else None
            job.emit(Drawn(token, chosen[row], likeliest[row], finish))
            if finish is None:
                unfinished.append(row)
        if not unfinished:
            return False
        if len(unfinished) < len(self.jobs):
            keep = torch.tensor(unfinished, device=choice.device)
            self.decoder.keep(keep)
            self.jobs = [self.jobs[row] for row in unfinished]
            choice, self.uniforms, self.temperature = choice[keep], self.uniforms[keep], self.temperature[keep]
        self.logits = self.decoder.step(choice)[:, : self.vocabulary]
        return True


def draw_tokens(logits: Tensor, uniform: Tensor, temperature: Tensor, filters: Sequence[Filters]) -> Tensor:
    """Tokens (B,) of logits (B, V), each row at its own temperature (B,), 0 for the likeliest, and with its own filters."""
    greedy = temperature == 0
    if bool(greedy.all()):
        return logits.float().argmax(dim=-1)
    scaled = logits.float() / torch.where(greedy, 1.0, temperature).unsqueeze(1)
    drawn = torch.empty_like(uniform, dtype=torch.long)
    for same in dict.fromkeys(filters):
        rows = torch.tensor([each == same for each in filters], device=logits.device)
        drawn[rows], _ = pick(scaled if bool(rows.all()) else scaled[rows], uniform[rows], 1.0, same)
    return torch.where(greedy, logits.float().argmax(dim=-1), drawn)


def likeliest_of(logprobs: Tensor, tops: Sequence[int]) -> list[Likeliest]:
    """The likeliest tokens of each row of log-probabilities (B, V), ``tops`` of them."""
    if not any(tops):
        return [()] * len(tops)
    values, ids = logprobs.topk(min(max(tops), logprobs.shape[1]), dim=-1)
    rows = zip(ids.tolist(), values.tolist(), tops, strict=True)
    return [tuple(zip(row_ids[:top], row_values[:top], strict=True)) for row_ids, row_values, top in rows]


@torch.inference_mode()
def score_prompt(model: Any, ids: Sequence[int], top: int, vocabulary: int | None = None) -> Scored:
    """The log-probability of each token of a text after the tokens before it."""
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    output = model(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        position_ids=torch.arange(len(ids), device=tokens.device).unsqueeze(0),
    )
    logprobs = torch.log_softmax(output.logits[0, :-1, :vocabulary].float(), dim=-1)
    chosen = logprobs.gather(1, tokens[0, 1:].unsqueeze(1)).squeeze(1).tolist()
    return Scored(tuple(chosen), tuple(likeliest_of(logprobs, [top] * len(chosen))))


class Engine:
    """The thread that owns the model. ``max_rows`` are decoded at once, in at most ``max_groups`` groups; further
    rows wait. More groups shorten the wait and make the batches smaller (benchmarks/serving.py)."""

    def __init__(self, trunk: Trunk, *, max_rows: int = 64, max_groups: int = 2) -> None:
        self.trunk, self.max_rows, self.max_groups = trunk, max_rows, max_groups
        self.waiting: deque[Job] = deque()
        self.groups: list[Group] = []
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="charter-engine", daemon=True)
        self.thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        with self.changed:
            self.waiting.extend(jobs)
            self.changed.notify()

    def close(self) -> None:
        """Stop after the step that is under way."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _take(self) -> list[Job]:
        """The jobs to begin now; waits for one if the engine is idle."""
        with self.changed:
            while not self.groups and not self.waiting and not self.closed:
                self.changed.wait()
            room = self.max_rows - sum(len(group.jobs) for group in self.groups)
            taken: list[Job] = []
            while self.waiting and len(taken) < room and len(self.groups) < self.max_groups:
                job = self.waiting.popleft()
                if not job.cancelled:
                    taken.append(job)
            return taken

    def _run(self) -> None:
        ends, vocabulary = end_ids(self.trunk.tokenizer), self.trunk.vocabulary
        with torch.inference_mode(), self.trunk.as_role(REFERENCE) as model:
            while not self.closed:
                fresh = self._take()
                for job in (job for job in fresh if not job.max_new_tokens):
                    self._guarded([job], lambda job=job: job.emit(score_prompt(model, job.prompt, job.top, vocabulary)))  # type: ignore[misc]
                if writing := [job for job in fresh if job.max_new_tokens]:
                    group = self._guarded(
                        writing, lambda jobs=writing: Group(model, jobs, ends, self.trunk.dtype, vocabulary)  # type: ignore[misc]
                    )  # fmt: skip
                    self.groups += [group] if group is not None else []
                self.groups = [group for group in self.groups if self._guarded(group.jobs, group.step)]

    def _guarded(self, jobs: Sequence[Job], work: Callable[[], Any]) -> Any:
        """The result of the work; None if it failed: its own jobs are told, and other jobs are not affected."""
        try:
            return work()
        except Exception as error:  # a model's forward pass raises whatever its libraries raise; the server continues
            for job in jobs:
                job.emit(Broken(f"{type(error).__name__}: {error}"[:200]))
            return None
