"""The held-out reward of a policy while it trains: asking for it, and keeping the policy at its peak.

A policy that is pushed far enough gains on its reward and loses on what the reward stands for (Gao, Schulman and Hilton 2022,
arXiv:2210.10760). ``gold`` stands for the second: another scorer, asked every few steps about answers to prompts that are neither
trained on nor in the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from charter.models.formats.sharded import is_divided, put
from charter.models.trunk import REFERENCE, Trunk
from charter.records import Prompt, Rollout
from charter.run.files import atomic_path, json_rows, write_json
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.rl.settings import PolicySettings, RolloutSettings
from charter.training.curve import best_row, curve_row, is_better, reason_to_stop
from charter.training.losses import token_kl
from charter.training.rollouts import collect, cut_minibatches, over_rollout

CURVE, ANSWERS, BEST, STOPPED = "gold.jsonl", "gold_responses.jsonl", "best.safetensors", "stopped.json"
GoldScore = Callable[[Sequence[Prompt], Sequence[str]], list[float | None]]
"""The gold value of each answer to a prompt; None where the source cannot say."""


@dataclass(frozen=True)
class Gold:
    """Who is asked, and about answers to which prompts."""

    prompts: Sequence[Prompt]
    score: GoldScore


class GoldCurve:
    """The held-out reward over the steps of one training, when the training ends, and which of its models is kept.

    ``proxy`` gives the reward that is trained on, (B,), of the held-out answers; where nothing is sampled in training, the caller
    gives a number to :meth:`ask`.
    """

    def __init__(
        self, trunk: Trunk, settings: PolicySettings, stage: Stage, gold: Gold | None, first: int,
        proxy: Callable[[Rollout], Any] | None = None,
    ) -> None:  # fmt: skip
        self.trunk, self.stage, self.gold, self.proxy = trunk, stage, gold, proxy
        self.keeps_best = settings.keep == "best"
        self.every = settings.gold.every if settings.gold is not None else 0
        self.stop = settings.stop
        self.sampling = sampling_of(settings)
        for name in (CURVE, ANSWERS):
            stage.rewind(name, first)
        self.rows: list[dict[str, Any]] = team().on_main(lambda: json_rows(stage.path(CURVE)))
        self.answers: list[dict[str, Any]] = team().on_main(lambda: json_rows(stage.path(ANSWERS)))

    def before(self, step: int, history: Sequence[Mapping[str, Any]], proxy: float | None = None) -> str | None:
        """Ask where it is time to, after ``step`` steps; the reason to end the training, if there is one."""
        if self.gold is not None and step % self.every == 0:
            self.ask(step, proxy)
        reason = reason_to_stop(self.stop, history, self.rows, self.answers) if step else None
        if reason is not None:
            self.stage.run.say(f"  {self.stage.name} ends after {step} steps: {reason}")
            team().on_main(lambda: write_json(self.stage.path(STOPPED), {"step": step, "reason": reason}))
        return reason

    def finish(self, step: int, proxy: float | None = None) -> None:
        """Ask about the last model, and put the best one in its place where that is to be kept."""
        if self.gold is None:
            return
        if not self.rows or self.rows[-1]["step"] != step:
            self.ask(step, proxy)
        if self.keeps_best and best_row(self.rows)["step"] != step:
            self.restore()

    def ask(self, step: int, proxy: float | None = None) -> None:
        """Sample one answer to each held-out prompt, have it scored, and log it."""
        assert self.gold is not None
        seed = derive_seed(self.stage.run.seed, self.stage.name, "gold")  # the same draws at every step
        rollout = collect(self.trunk, self.gold.prompts, self.sampling, seed, k=1)
        cuts = [
            cut for part in cut_minibatches(self.trunk, rollout, 1, self.sampling.tokens_per_micro_batch, seed) for cut in part
        ]
        temperature = self.sampling.temperature
        policy, reference = (
            over_rollout(self.trunk, role, rollout, cuts,
                         lambda packed, role=role: self.trunk.logprobs(role, packed, temperature=temperature)[0])  # type: ignore[misc]
            for role in ("policy", REFERENCE)
        )  # fmt: skip
        kl = token_kl(policy, reference, rollout.mask).sum(dim=1).tolist()
        proxies = self.proxy(rollout) if self.proxy is not None else [proxy] * len(kl)
        golds = self.gold.score(rollout.prompts, rollout.texts)
        lengths, finished = rollout.mask.sum(dim=1).tolist(), rollout.finished.tolist()
        answers = [
            {"step": step, "prompt_id": p.id, "prompt": p.last_turn, "tags": list(p.tags), "text": text, "gold": g, "proxy": r,
             "kl": nats, "tokens": n, "finished": ended}
            for p, text, g, r, nats, n, ended in zip(
                rollout.prompts, rollout.texts, golds, proxies, kl, lengths, finished, strict=True)
        ]  # fmt: skip
        row = curve_row(step, answers)
        if self.keeps_best and (not self.rows or is_better(row, best_row(self.rows))):
            self.save()
        self.rows.append(row)
        self.answers += answers
        if team().is_main:
            append(self.stage, ANSWERS, answers)
            append(self.stage, CURVE, [row])

    def save(self) -> None:
        """Keep the policy's weights as they are now."""
        from safetensors.torch import save_file

        parameters = self.trunk.parameters("policy")
        assert not any(map(is_divided, parameters.values())), "the recipe refuses keep: best with divided weights"
        if team().is_main:
            with atomic_path(self.stage.path(BEST)) as temporary:
                save_file({name: value.detach().cpu().contiguous() for name, value in parameters.items()}, temporary)

    def restore(self) -> None:
        """Put the kept weights back."""
        from safetensors.torch import load_file

        kept = load_file(self.stage.path(BEST))
        for name, parameter in self.trunk.parameters("policy").items():
            put(parameter, kept[name])


def sampling_of(settings: PolicySettings) -> RolloutSettings:
    """How the held-out answers are sampled: as the rollouts, or, where a method has none, in its place."""
    if isinstance(settings, RolloutSettings):
        return settings
    length = settings.gold.max_new_tokens if settings.gold is not None else None
    return RolloutSettings(max_new_tokens=length or 64, tokens_per_micro_batch=settings.tokens_per_micro_batch)


def append(stage: Stage, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(stage.path(name), "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))
