"""Environments of Gymnasium whose actions are answers: importing this package registers ``charter/Dialogue-v0`` and
``charter/Text-v0``. Needs gymnasium (the extra `gym`)."""

import gymnasium

from charter.environments.dialogue import DialogueEnv
from charter.environments.text import TextEnv
from charter.environments.words import WordsObservation

__all__ = ["DialogueEnv", "TextEnv", "WordsObservation"]

for name, kind in (("Dialogue", DialogueEnv), ("Text", TextEnv)):
    gymnasium.register(f"charter/{name}-v0", entry_point=f"{kind.__module__}:{kind.__name__}")
