"""``charter/Dialogue-v0``: choose one of K responses to a prompt. An episode is one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from charter.environments.candidates import candidates_of, index_of
from charter.environments.reward import reward_of
from charter.environments.space import AnyText, as_text
from charter.errors import GateError, InputError


class DialogueEnv(gymnasium.Env[str, Any]):
    """Observation: the prompt (several turns as lines `role: content`). Action: the number of a response, 0 to K - 1. Reward: the
    scorer's. The scorer reads all K responses at each reset, so every step has a reward: a prompt with a response about which
    the scorer abstains is passed over, and another prompt is drawn.

    ``candidates`` as :func:`charter.environments.candidates.candidates_of`, ``scorer`` as
    :func:`charter.environments.reward.reward_of` takes them. ``reset(options={"index": i})`` takes the i-th prompt.

    Of reset's info: ``prompt_id``, ``index``, ``candidates`` (K texts), and ``passed_over``, the prompts that this reset passed
    over. Of step's: ``prompt_id``, ``response``, ``rewards`` (K,) and ``best``, their maximum.
    """

    def __init__(
        self, candidates: str | Path | Iterable[Mapping[str, Any]], scorer: str | Path | Callable[[str, str], Any]
    ) -> None:
        self.rows, self.reward = candidates_of(candidates), reward_of(scorer)
        self.texts = [as_text(row.prompt.messages) for row in self.rows]
        self.k = len(self.rows[0].responses)
        self.action_space = Discrete(self.k)
        self.observation_space = AnyText(max(map(len, self.texts)))
        self._steady: dict[int, list[float | None]] = {}
        self.index = 0
        self.rewards: list[float] = []

    @property
    def candidates(self) -> tuple[str, ...]:
        """The K responses of this episode."""
        return self.rows[self.index].responses

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a prompt. GateError if the scorer abstains on every prompt, or on the one of ``options``."""
        super().reset(seed=seed)
        named = index_of(options, len(self.rows))
        order = self.np_random.permutation(len(self.rows)).tolist() if named is None else [named]
        for index in order:
            rewards = [reward for reward in self._score(index) if reward is not None]
            if len(rewards) == self.k:
                break
        else:
            prompts = f"the prompt at index {named}" if named is not None else f"each of the {len(order)} prompts"
            raise GateError(f"the scorer abstains on at least one response to {prompts}; take another scorer or other candidates")
        self.index, self.rewards = index, rewards
        row = self.rows[index]
        info = {"prompt_id": row.prompt.id, "index": index, "candidates": row.responses, "passed_over": order.index(index)}
        return self.texts[index], info

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Give the chosen response. InputError for an unknown response."""
        if not self.rewards:
            raise gymnasium.error.ResetNeeded("the episode is over; call reset")
        if not self.action_space.contains(action):
            raise InputError(f"action {action!r}; use 0 to {self.k - 1}")
        row, rewards = self.rows[self.index], self.rewards
        self.rewards = []
        info = {"prompt_id": row.prompt.id, "response": row.responses[action], "rewards": np.array(rewards), "best": max(rewards)}
        return self.texts[self.index], rewards[action], True, False, info

    def _score(self, index: int) -> list[float | None]:
        """The rewards of the responses to a prompt; remembered where the scorer is a model or a rule."""
        if index in self._steady:
            return self._steady[index]
        row = self.rows[index]
        rewards = self.reward(row.prompt, row.responses)
        if self.reward.steady:
            self._steady[index] = rewards
        return rewards
