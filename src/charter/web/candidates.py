"""The two candidates of a red-team turn, written by models that answer one request at a time.

The models have a thread of their own: a person who waits for an answer does not delay other pages. Few may wait; the others
are told to come again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from charter.records import Generation, Prompt, Response
from charter.run.hashes import derive_seed
from charter.web.project import RedTeamSettings

if TYPE_CHECKING:
    from charter.models.sampling.sampler import Sampler

WAITING = 8  # requests, beside the one that is being answered


class Busy(Exception):
    """As many requests wait for the models as may wait."""


class Candidates:
    """The models of one project. ``seed`` is that of its settings."""

    def __init__(self, samplers: Sequence[Sampler], settings: RedTeamSettings, seed: int) -> None:
        self.samplers, self.settings, self.seed = list(samplers), settings, seed
        self.thread = ThreadPoolExecutor(1, "models")
        self.places = threading.Semaphore(1 + WAITING)
        self.closed = False

    async def write(self, prompt: Prompt, dialogue: int) -> list[Response]:
        """Two answers, each from a model and in a place by a draw; a second one that says the same is drawn anew, three times.

        Busy where too many wait, or the server ends. InputError where the prompt does not fit a model.
        """
        if not self.places.acquire(blocking=False):
            raise Busy
        job = self.thread.submit(self._write, prompt, dialogue)
        job.add_done_callback(lambda _: self.places.release())
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:  # the server ends; who asked is told to come again, and keeps what they wrote
            raise Busy from None

    def _write(self, prompt: Prompt, dialogue: int) -> list[Response]:
        settings = self.settings
        responses: list[Response] = []
        for number in range(5):
            if self.closed:
                raise Busy
            seed = derive_seed(self.seed, "red team", dialogue, prompt.id, number)
            sampler = self.samplers[derive_seed(seed, "model") % len(self.samplers)]
            sample = sampler.generate([prompt.messages], [[seed]], temperature=settings.temperature,
                                      max_new_tokens=settings.max_new_tokens)[0][0]  # fmt: skip
            text = sample.text.replace("\x00", "")
            response = Response(prompt_id=prompt.id, model=sampler.name, text=text, finish_reason=sample.finish_reason,
                           generation=Generation(seed=seed, temperature=settings.temperature))  # fmt: skip
            if len(responses) == 1 and response.text == responses[0].text and number < 4:
                continue
            responses.append(response)
            if len(responses) == 2:
                break
        return responses if derive_seed(dialogue, prompt.id, "side") % 2 else responses[::-1]

    def close(self) -> None:
        """Nobody waits any more. An answer that is being written is written to its end, for a model cannot be interrupted."""
        self.closed = True
        self.thread.shutdown(cancel_futures=True)
