"""The first rows of the reward model."""

from __future__ import annotations

from charter.stages.rows import NO_PAIRS, Preview, Shown, rows_of_pair


def show_reward_model(preview: Preview) -> Shown | None:
    """Chosen and rejected of each pair, with the place where the score is read: the last real token."""
    if not preview.recipe.trains_reward_model:
        return None
    rows = rows_of_pair(preview.trunk, preview.pairs, preview.recipe.reward_model.max_tokens, rewarded=True)
    about = "Scored: the head reads one place of each row; chosen should score above rejected."
    return about if rows else NO_PAIRS, rows
