"""``charter/Text-v0``: write the response. One step an episode, or one for each turn of a scripted user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium

from charter.environments.candidates import index_of, prompts_of
from charter.environments.reward import reward_of
from charter.environments.space import AnyText, as_text
from charter.errors import GateError, InputError
from charter.records import Message, Prompt

MARKS = len("\nassistant: \nuser: ")


class TextEnv(gymnasium.Env[str, str]):
    """Observation: the conversation so far (one turn as it is, several as lines `role: content`). Action: the assistant's next
    turn, at most ``max_characters``. Reward: the scorer's, of this turn after the conversation before it.

    ``user``: what the user says after the first answer, after the second, and so on; the answer to the last ends the episode.
    ``abstain``: the reward of a response about which the scorer cannot say; without it such a step raises GateError. ``prompts``
    as :func:`charter.environments.candidates.prompts_of`, ``scorer`` as :func:`charter.environments.reward.reward_of` takes
    them. ``reset(options={"index": i})`` takes the i-th prompt.

    Of reset's info: ``prompt_id`` and ``index``. Of step's: ``turn`` from 1, ``abstained``, and ``abstentions``, the count since
    the environment was made.
    """

    def __init__(
        self, prompts: str | Path | Iterable[str | Prompt], scorer: str | Path | Callable[[str, str], Any], *,
        user: Sequence[str] = (), abstain: float | None = None, max_characters: int = 2_000,
    ) -> None:  # fmt: skip
        if isinstance(user, str):
            raise InputError("must be a list of texts, one for each further turn", field="user")
        self.prompts, self.reward = prompts_of(prompts), reward_of(scorer)
        self.user = [Message(role="user", content=text) for text in user]
        self.abstain, self.abstentions = abstain, 0
        self.max_characters, self.action_space = max_characters, AnyText(max_characters)
        longest = max(len(as_text(prompt.messages)) for prompt in self.prompts) + len("user: ")
        turns = sum(max_characters + MARKS + len(text) for text in (*user, ""))
        self.observation_space = AnyText(longest + turns)
        self.prompt: Prompt | None = None
        self.turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a prompt."""
        super().reset(seed=seed)
        named = index_of(options, len(self.prompts))
        index = int(self.np_random.integers(len(self.prompts))) if named is None else named
        self.prompt, self.turn = self.prompts[index], 0
        return as_text(self.prompt.messages), {"prompt_id": self.prompt.id, "index": index}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Say ``action``. InputError if it is too long or not a text; GateError if the scorer abstains and ``abstain`` is
        not given."""
        if self.prompt is None:
            raise gymnasium.error.ResetNeeded("the episode is over; call reset")
        if not self.action_space.contains(action):
            raise InputError(f"the action {str(action)[:60]!r} is not a text of at most {self.max_characters} "
                             "characters; cut it, or raise max_characters")  # fmt: skip
        (reward,) = self.reward(self.prompt, [action])
        abstained = reward is None
        if reward is None:
            if self.abstain is None:
                raise GateError(
                    f"the scorer cannot say what {action[:60]!r} is worth; set abstain to the reward of such a response"
                )
            reward, self.abstentions = self.abstain, self.abstentions + 1
        self.turn += 1
        is_last = self.turn > len(self.user)
        messages = (*self.prompt.messages, Message(role="assistant", content=action), *self.user[self.turn - 1 : self.turn])
        self.prompt = None if is_last else Prompt(messages=messages, source=self.prompt.source, tags=self.prompt.tags)
        info = {"turn": self.turn, "abstained": abstained, "abstentions": self.abstentions}
        return as_text(messages), float(reward), is_last, False, info
