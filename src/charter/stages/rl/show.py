"""The first rows of the last training: rollouts with the place of the reward, or the pairs themselves."""

from __future__ import annotations

from pathlib import Path

from charter.models.packing import Tokens
from charter.reading.prompts import KINDS
from charter.reading.ratings import read_ratings
from charter.run.hashes import derive_seed
from charter.stages.rl.settings import ILQLSettings, PairSettings, RolloutSettings
from charter.stages.rows import NO_PAIRS, ROWS, Preview, Row, Shown, response_rows, rows_of_pair
from charter.training.methods.reward_model import rating_tokens
from charter.training.rollouts import collect, prompt_batch


def show_rl(preview: Preview) -> Shown | None:
    """Pairs where the method compares them, rollouts where it samples."""
    settings = preview.recipe.rl
    if settings is None:
        return None
    if isinstance(settings, PairSettings):
        ilql = isinstance(settings, ILQLSettings)
        if isinstance(settings, ILQLSettings) and settings.ratings:
            rated = read_ratings(Path(settings.ratings[0])).ratings[:ROWS]
            tokens = [rating_tokens(preview.trunk, rating, settings.max_tokens or preview.trunk.room) for rating in rated]
            rows = response_rows(
                preview.trunk, [f"rated {rating.score:g}" for rating in rated], tokens,
                [rating.prompt.messages for rating in rated], rewarded=True,
            )  # fmt: skip
        else:
            rows = rows_of_pair(preview.trunk, preview.pairs, settings.max_tokens, rewarded=ilql)
        about = "Compared: log-probabilities of the responses, chosen against rejected."
        if ilql:
            about = "Learned from: every token of a response is an action, and the reward is paid at the last one."
        return about if rows else NO_PAIRS, rows
    about = "Rolled out: the response is what is learned, its last token is where the score is paid."
    return about, rollout_rows(preview, settings)


def rollout_rows(preview: Preview, settings: RolloutSettings) -> list[Row]:
    """The first prompts of step 0 rolled out; a policy without a role of its own is still the base."""
    settings = settings.model_copy(update={"prompts_per_step": ROWS, "samples_per_prompt": 1})
    seed = derive_seed(preview.recipe.seed, "rl")
    batch = prompt_batch([p for kind in KINDS for p in preview.prompts[kind]], 0, ROWS, seed)
    rollout = collect(preview.trunk, batch, settings, derive_seed(seed, "rollout", 0))
    tokens = [Tokens(ids, row[on].tolist()) for ids, row, on in
              zip(rollout.prompt_ids, rollout.ids, rollout.mask, strict=True)]  # fmt: skip
    names = ["rollout" if finished else "rollout, cut off" for finished in rollout.finished]
    return response_rows(preview.trunk, names, tokens, [prompt.messages for prompt in rollout.prompts], rewarded=True)
