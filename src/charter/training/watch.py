"""The invariants of every RL run, checked while it runs. A broken invariant stops the run and names the usual cause.

The checks find runs that train on something other than they log: a mask, a template or a temperature that differs between
sampling and training, dropout left on, fewer optimizer steps than planned, weights silently cast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from scipy import special  # scipy.stats takes a second to import
from torch import Tensor

from charter.errors import GateError
from charter.models.trunk import Trunk
from charter.records import Rollout
from charter.run.run import Stage
from charter.stages.rl.settings import RolloutSettings
from charter.statistics import trend

EXACT = 1e-5  # of a KL or a ratio that is the same computation twice
SAMPLER_GAP = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Most nats a token, mean, between sampling and training. Both make logits in the precision of the run, and those of a large
vocabulary reach 32, where bfloat16 has steps of 1/4: a sound run of a 135M model differs by .04."""


class Watch:
    """The checks of one run of PPO, RLOO or GRPO. ``first`` is the step it resumes at."""

    def __init__(self, stage: Stage, trunk: Trunk, settings: RolloutSettings, *, updates: int, first: int) -> None:
        self.stage, self.trunk, self.settings, self.updates = stage, trunk, settings, updates
        self.dtypes = {name: parameter.dtype for name, parameter in trunk.parameters("policy").items()}
        self.history = stage.metrics()
        self.first_ratio = self.sampler_gap = math.nan
        self.warned: set[str] = set()
        n = settings.prompts_per_step * settings.samples_per_prompt
        stage.run.say(
            f"  {n} completions a step ({settings.prompts_per_step} prompts x {settings.samples_per_prompt}), {updates} "
            f"update{'s' * (updates != 1)} a step, {settings.steps} steps" + (f", resuming at step {first}" if first else "")
        )

    def rollout(self, step: int, rollout: Rollout, logprobs: Tensor, kl: Tensor) -> None:
        """After scoring: the trainer sees the tokens that the sampler drew, with the probabilities it drew them with."""
        counted = int(rollout.mask.sum())
        if counted != rollout.n_tokens:
            self.stop(step, f"the masks hold {counted} response tokens, the sampler drew {rollout.n_tokens}",
                      "a mask that was made from token ids instead of lengths")  # fmt: skip
        difference = (logprobs - rollout.logprobs)[rollout.mask].abs()
        self.sampler_gap = float(difference.mean()) if counted else 0.0
        if self.sampler_gap > SAMPLER_GAP[self.trunk.precision]:
            self.stop(step, f"log-probabilities of sampling and training differ by {self.sampler_gap:.2g} nats a token",
                      "another temperature, template or position in one of the two, or dropout that is on"
                      + ("" if self.trunk.precision == "float32" else "; in float32 the gap has no rounding"))  # fmt: skip
        if not bool(torch.isfinite(kl).all()):
            self.stop(step, "a log-probability is not finite", "a learning rate that is too high")
        response_kl = kl.sum(dim=1)
        if step == 0 and self.settings.from_policy is None and float(response_kl.abs().max()) > EXACT:
            self.stop(step, f"the KL before the first update is {float(response_kl.abs().max()):.2g} nats and not 0",
                      "a policy that does not start as the reference, or dropout that is on")  # fmt: skip
        n = len(response_kl)
        if n > 1:
            error = float(response_kl.std()) / n**0.5
            # 4 standard errors of many responses; of a few, whose spread is known badly, as many as are equally unlikely.
            limit = -float(special.stdtrit(n - 1, special.ndtr(-4.0)))
            if float(response_kl.mean()) < -limit * error - EXACT:
                self.stop(
                    step, f"the KL of {n} responses is {float(response_kl.mean()):.3g} nats, more than {limit:.1f} standard "
                    "errors below 0, which no distribution can be",
                    "responses that were not sampled from the policy as it is scored: top-k or top-p, another "
                    "temperature or template, a wrong mask",
                )  # fmt: skip

    def first_minibatch(self, step: int, ratio: float) -> None:
        """Before the first update of a step the policy is the one that sampled: mean ratio 1."""
        self.first_ratio = ratio
        if not abs(ratio - 1) <= EXACT:
            self.stop(step, f"the ratio before the first update of the step is {ratio:.6f} and not 1",
                      "dropout that is on, or micro-batches that are cut differently in scoring and training")  # fmt: skip

    def step_done(self, step: int, row: Mapping[str, Any]) -> None:
        """After the updates. ``row`` is what the step logs."""
        may_stop_early = getattr(self.settings, "stop_kl", None) is not None
        if row["updates"] != self.updates and not (may_stop_early and 0 < row["updates"] < self.updates):
            self.stop(step, f"{row['updates']} updates were made and {self.updates} planned", "a defect of Charter")
        for name, parameter in self.trunk.parameters("policy").items():
            if parameter.dtype != self.dtypes[name]:
                self.stop(step, f"the weights {name} became {parameter.dtype}", "a library that casts them in place")
        for key in ("reward", "kl", "entropy", "value_loss", "loss"):
            if key in row and not math.isfinite(row[key]):
                self.stop(step, f"{key} is not finite", "a reward that is not finite or a learning rate that is too high")
        self.history.append(dict(row))
        for key, text in warnings_of(self.history).items():
            if key not in self.warned:
                self.warned.add(key)
                self.stage.run.say(f"  warning at step {step}: {text}")

    def stop(self, step: int, what: str, cause: str) -> None:
        """GateError with the broken invariant and its usual cause."""
        raise GateError(f"{self.stage.name}, step {step}: {what}; the likely cause: {cause}")


def warnings_of(history: list[dict[str, Any]]) -> dict[str, str]:
    """Warnings by kind, from the logged rows of a run. A warning does not stop the run."""
    warnings: dict[str, str] = {}
    if history and history[-1].get("response_tokens") == 1 and history[-1].get("missing_eos") == 0:
        warnings["empty"] = (
            "every response is empty: the policy writes the end token at once; look at the template and the SFT model"
        )
    if history and all(row.get("reward_sem") == 0 or row.get("groups_without_spread") == 1 for row in history):
        warnings["equal"] = "all responses to a prompt got the same reward, so the gradient is 0; look at the reward"
    if len(history) < 5:
        return warnings
    early = sorted(row["entropy"] for row in history[:5])[2]
    if early > 0.05 and history[-1]["entropy"] < 0.05 * early:
        warnings["entropy"] = (
            f"the entropy fell from {early:.3f} to {history[-1]['entropy']:.3f} nats a token: nearly every response is "
            "the same; raise kl_coef or lower the learning rate"
        )
    if "value_loss" in history[0]:
        early = max(row["value_loss"] for row in history[:5])
        if history[-1]["value_loss"] > 100 * max(early, 1e-3):
            warnings["value_loss"] = (
                f"the value loss rose from {early:.3g} to {history[-1]['value_loss']:.3g}; lower value_learning_rate"
            )
    rewards = trend([row["reward"] for row in history])
    if rewards is not None and not rewards.rises:
        warnings["reward"] = (
            f"the reward has no upward trend over {len(history)} steps: nothing shows that the policy is learning; train longer, "
            "raise the learning rate or look at the reward"
        )
    return warnings
