"""Observations as numbers, for libraries whose networks read no text."""

from __future__ import annotations

import re
from typing import Any
from zlib import crc32

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray


def bag_of_words(text: str, size: int) -> NDArray[np.float32]:
    """Which words a text has, (size,): 1 at the hash of each. Two words may share a place."""
    bag = np.zeros(size, dtype=np.float32)
    bag[[crc32(word.encode()) % size for word in re.findall(r"\w+", text.lower())]] = 1
    return bag


class WordsObservation(gymnasium.ObservationWrapper[NDArray[np.float32], Any, str]):
    """The words of the prompt and, in ``charter/Dialogue-v0``, of each candidate: a Box of (1 + K, size) zeros and ones."""

    def __init__(self, env: gymnasium.Env[str, Any], size: int = 256) -> None:
        super().__init__(env)
        self.size = size
        k = int(env.action_space.n) if isinstance(env.action_space, gymnasium.spaces.Discrete) else 0
        self.observation_space = Box(0, 1, (1 + k, size), np.float32)

    def observation(self, observation: str) -> NDArray[np.float32]:
        texts = (observation, *getattr(self.unwrapped, "candidates", ()))
        return np.stack([bag_of_words(text, self.size) for text in texts])
