"""The first rows of the revise stage."""

from __future__ import annotations

from pathlib import Path

from charter.constitution.constitution import load_few_shots
from charter.constitution.revise import answer_in_context, revise_batch
from charter.models.sampling.sampler import LocalSampler
from charter.stages.rows import Preview, Recorder, Shown, question_rows


def show_revise(preview: Preview) -> Shown | None:
    """The conversations that the model continues. Leaves the last revision of each prompt, and a helpful answer where the
    recipe has any."""
    recipe, trunk, settings = preview.recipe, preview.trunk, preview.recipe.revise
    if settings is None:
        return None
    prompts, benign = preview.first["red_team"], preview.first["benign"]
    recorder = Recorder(trunk, "base")
    answers = [group[0] for group in preview.respond(recorder, prompts, "revise")]
    if settings.context is not None:
        about = "Sampled from: an answer, then one with the context before it. No loss."
        names = ["answer", "answer in context"]
        revisions = answer_in_context(recorder, list(zip(prompts, answers, strict=True)), settings, seed=recipe.seed)
    else:
        about = "Sampled from: an answer, then for each round a critique and a revision. No loss."
        names = ["answer", *(f"{step} {n + 1}" for n in range(settings.rounds) for step in ("critique", "revision"))]
        shots = load_few_shots(Path(settings.few_shots)) if settings.few_shots else []
        revisions = revise_batch(
            recorder, prompts, answers, preview.constitution, settings, seed=recipe.seed,
            few_shots=[message for shot in shots for message in shot],
        )  # fmt: skip
    rows = [row for step in zip(names, recorder.continued, strict=True) for row in question_rows(trunk, *step)]
    usable = [r for r in revisions if not r.excluded] or revisions
    last = {r.prompt_id: r.revision.text for r in usable}
    preview.revised = [(p, a.text, last[p.id]) for p, a in zip(prompts, answers, strict=True) if p.id in last]
    preview.examples = [(prompt.messages, revision) for prompt, _, revision in preview.revised]
    if recipe.sft is not None and recipe.sft.helpful_fraction and benign:
        helpful = preview.respond(LocalSampler(trunk, "base"), benign[:1], "revise")
        preview.examples.append((benign[0].messages, helpful[0][0].text))
    return about, rows
