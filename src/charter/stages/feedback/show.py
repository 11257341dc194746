"""The first rows of the feedback stage."""

from __future__ import annotations

from pathlib import Path

from charter.constitution.categorise import categorise
from charter.constitution.revise import asked_for, under_stances
from charter.judging.judge import judgment, pairs_of
from charter.judging.protocols import PROTOCOLS
from charter.models.chat_template import encode_response
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.reading.pairs import read_pairs
from charter.reading.prompts import KINDS
from charter.records import Pair, Prompt, Response
from charter.stages.feedback.run import check_system_turn, drawn_comparisons, pair_of, ranked_cases, stances_of
from charter.stages.feedback.settings import ContrastSettings, FeedbackSettings
from charter.stages.prompts.run import last_of_each_kind
from charter.stages.rows import ROWS, Preview, Recorder, Row, Shown, pieces_of, question_rows

NAMES = {
    "letters": ("question", "question, swapped"), "rubric": ("question",),
    "likelihood": ("under the principle", "without it"), "reasoned": ("question", "question, swapped"),
}  # fmt: skip
"""What the rows of a protocol are, in turn."""


def show_feedback(preview: Preview) -> Shown | None:
    """The questions of the stage. Leaves the first pairs."""
    settings = preview.recipe.feedback
    if settings is None:
        return None
    rows: list[Row] = []
    if settings.pairs:
        about = "The pairs come from files: nothing is sampled and no model is asked."
        pairs = list(read_pairs(Path(settings.pairs[0])).pairs)
    elif settings.revisions:
        about = "The pairs come from the revise stage: the last revision is chosen, the first answer rejected. No model is asked."
        pairs = [pair for prompt, answer, revision in preview.revised for pair in pair_of(prompt, revision, answer)]
    elif settings.contrast is not None:
        about = "Sampled from: each prompt in the way that asks for the chosen response, then for the rejected. No loss."
        rows, pairs = contrast_rows(preview, settings.contrast, compared_prompts(preview, settings))
    elif settings.asks_judge:
        about = "Asked of the judge about each two responses: which option is the likelier continuation? No loss."
        if settings.priorities:
            about += " The first principle by priority; the next are asked where it does not decide."
        rows, pairs = judge_rows(preview, settings, compared_prompts(preview, settings))
    else:
        about = "Sampled from: people compare the responses. No loss."
        rows, pairs = people_rows(preview, settings, compared_prompts(preview, settings))
    preview.pairs = pairs[:ROWS]
    return about, rows


def compared_prompts(preview: Preview, settings: FeedbackSettings) -> list[Prompt]:
    """The first prompts whose responses the stage compares, sorted by principle."""
    prompts = last_of_each_kind([preview.prompts[kind] for kind in KINDS], settings.prompts)
    return categorise(prompts[:ROWS], preview.constitution, LocalSampler(preview.trunk, "base"))


def candidates(preview: Preview, settings: FeedbackSettings, prompts: list[Prompt]) -> list[list[Response]]:
    """Two responses to each prompt, as the stage samples them."""
    sampler, stances = LocalSampler(preview.trunk, "sft"), stances_of(settings)
    check_system_turn(sampler, stances)
    return preview.respond(sampler, prompts, "feedback", 2, stances)


def people_rows(preview: Preview, settings: FeedbackSettings, prompts: list[Prompt]) -> tuple[list[Row], list[Pair]]:
    """The prompts that are answered, and two answers to each as a pair in the order in which they were drawn: the place of
    people's verdicts, which nobody has given yet."""
    groups = candidates(preview, settings, prompts)
    stances = stances_of(settings)
    asked = [dialogue for prompt in prompts for dialogue in
             (under_stances(prompt, stances, preview.recipe.seed, 2) if stances else [prompt.messages])]  # fmt: skip
    rows = question_rows(preview.trunk, "prompt", asked)
    return rows, [pair for p, (a, b) in zip(prompts, groups, strict=True) for pair in pair_of(p, a.text, b.text)]


def judge_rows(preview: Preview, settings: FeedbackSettings, prompts: list[Prompt]) -> tuple[list[Row], list[Pair]]:
    """The judge's questions about two responses to each prompt, and the pairs that its answers make."""
    trunk, judge = preview.trunk, settings.judge
    recorder = Recorder(load_trunk(judge.name, device=str(trunk.device)) if judge.kind == "model" else trunk, str(judge))
    groups = candidates(preview, settings, prompts)
    if settings.priorities:
        comparisons = [case[0] for case in ranked_cases(preview.recipe, preview.constitution, prompts, groups)]
    else:
        comparisons = drawn_comparisons(preview.recipe, preview.constitution, prompts, groups)
    protocol = "letters" if settings.protocol == "auto" else settings.protocol
    names = NAMES.get(protocol, ("question, first response", "question, second"))
    preferences = PROTOCOLS[protocol](recorder)(comparisons)
    rows = []
    tokenizer = recorder.trunk.tokenizer
    for conversations, options in recorder.compared:
        questions = question_rows(recorder.trunk, "question", conversations)
        for i, (row, choices) in enumerate(zip(questions, options, strict=True)):
            row["what"] = names[i % len(names)]
            encoded = [encode_response(tokenizer, choice, end=False) for choice in choices]
            row["options"] = [{"ids": ids, "pieces": pieces_of(tokenizer, ids)} for ids in encoded]
        rows += questions
    # Shown whatever the margin: where the stage would abstain, the row would look the same.
    verdicts = [judgment(c, p, rater_id="judge", abstain_below=0.0) for c, p in zip(comparisons, preferences, strict=True)]
    responses: dict[str, Response] = {r.id: r for group in groups for r in group}
    pairs = pairs_of(verdicts, {p.id: p for p in prompts}, responses, calibration=settings.calibration)
    if not pairs and settings.labelled_pairs:
        pairs = list(read_pairs(Path(settings.labelled_pairs)).pairs)
    return rows, pairs


def contrast_rows(preview: Preview, contrast: ContrastSettings, prompts: list[Prompt]) -> tuple[list[Row], list[Pair]]:
    """Each prompt as it is asked for the better and for the worse response, and the pairs of the two."""
    sampler, rows, texts = LocalSampler(preview.trunk, "sft"), [], []
    for name, words in (("positive", contrast.positive), ("negative", contrast.negative)):
        steered = [asked_for(prompt, words) for prompt in prompts]
        rows += question_rows(preview.trunk, name, [prompt.messages for prompt in steered])
        texts.append([group[0].text for group in preview.respond(sampler, steered, "feedback")])
    return rows, [pair for sides in zip(prompts, *texts, strict=True) for pair in pair_of(*sides)]
