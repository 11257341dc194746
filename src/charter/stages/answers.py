"""Responses of a model in a file of a stage, resumed where a kill cut them off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from charter.constitution.revise import respond
from charter.models.sampling.sampler import LocalSampler, Sampler
from charter.recipe.settings import SamplingSettings
from charter.records import Prompt, Response
from charter.run.run import Stage


def answer(
    stage: Stage, name: str, sampler: Sampler, prompts: Sequence[Prompt], *, k: int = 1, batch_size: int, seed: int,
    settings: SamplingSettings, what: str | None = None, label: str | None = None, stances: Sequence[str] = (),
    may_reuse: bool = True,
) -> list[Response]:  # fmt: skip
    """K responses to each prompt, in the file ``name``, prompt by prompt, ``batch_size`` responses at once, sampled as
    ``settings`` say. The seeds of the draws derive from ``seed``, ``what`` (the stage unless given) and the prompt, so responses
    of an earlier run of the stage hold, whatever else was sampled; not where another model gave them (``may_reuse``). ``stances``
    as in ``respond``."""
    earlier: defaultdict[str, list[Response]] = defaultdict(list)
    for response in stage.earlier(name, Response) if may_reuse else ():
        earlier[response.prompt_id].append(response)
    return stage.rows(name, Response).work(
        list(prompts),
        max(1, batch_size // k),
        lambda batch: [
            response
            for group in respond(sampler, batch, settings, seed=seed, what=what or stage.name, k=k, stances=stances)
            for response in group
        ],
        rows_per_item=k,
        known=lambda prompt: earlier[prompt.id] if len(earlier[prompt.id]) == k else None,
        by_all=isinstance(sampler, LocalSampler),
        label=f"{stage.name}: {label or name.removesuffix('.jsonl')}",
        quiet=stage.run.quiet,
    )
