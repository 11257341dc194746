"""Feedback: responses compared by a judge or by people, or pairs that need no comparing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from charter.constitution.revise import asked_for
from charter.errors import GateError, InputError
from charter.judging.gate import judge_gate
from charter.judging.judge import LogProbJudge, comparisons_of, judgment, pairs_of
from charter.judging.people import FOLDER, TO_LABEL, Votes, agreement_with_people, sample_for_people, with_people
from charter.models.sampler import LocalSampler
from charter.reading.pairs import read_pairs
from charter.records import Judgment, Pair, Prompt, Response, Revision, content_id
from charter.run.files import read_jsonl, write_jsonl
from charter.run.hashes import derive_seed, file_hash
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.prompts.run import prompts_to_compare
from charter.stages.revise.run import usable_revisions
from charter.stages.work import Model, Work, answer, hash_of_principles, percent
from charter.votes.exports import export_preferences
from charter.votes.judgments import follow


def gather_feedback(work: Work, prompts: Stage | None, revisions: Stage | None, start: Model) -> Stage:
    """K responses per prompt, compared by the judge under drawn principles, by people, or by both: judgments, then pairs.

    Gates: before any label the judge must beat chance on pairs whose answer is known; people must have answered.
    """
    recipe, run = work.recipe, work.run
    settings = recipe.feedback
    assert settings is not None
    if settings.pairs:
        return take_pairs(work)
    assert prompts is not None
    if settings.revisions:
        assert revisions is not None
        return pair_revisions(work, prompts, revisions)
    if settings.contrast is not None:
        return pair_by_contrast(work, prompts, start)
    judged = settings.asks_judge
    labelled = read_pairs(Path(settings.labelled_pairs)).pairs[: settings.gate_pairs] if settings.labelled_pairs else []
    inputs = {
        "prompts": prompts.output_hash,
        "sft": start.hash,
        "judge": work.hash_of(settings.judge, start) if judged else "",
        "generator": work.hash_of(settings.generator, start),
        "principles": hash_of_principles(work.constitution, "preference", "tags", "weight"),
        "labelled": content_id([pair.model_dump(mode="json") for pair in labelled]),
        "gate": content_id(recipe.gates.min_judge_accuracy),
        "batch": str(recipe.batch_size),
    }  # fmt: skip
    with run.stage(work.named("feedback"), settings, inputs, [__name__]) as stage:
        if stage.done:
            work.recall_gates(stage)
            return stage
        judge = LogProbJudge(work.sampler(work.folder_of(settings.judge, start), settings.judge)) if judged else None
        card = None if judge is None else gate_judge(work, stage, start, judge, labelled)
        chosen = prompts_to_compare(prompts, settings.prompts)
        k = settings.responses_per_prompt
        generator = work.sampler(work.folder_of(settings.generator, start), settings.generator)
        responses = answer(work, stage, "responses.jsonl", generator, chosen, k)
        groups = [responses[i : i + k] for i in range(0, len(responses), k)]
        pairs: list[Pair] = []
        result: dict[str, Any] = {}
        judgments: list[Judgment] = []
        if judge is not None:
            judgments = judge_groups(work, stage, judge, chosen, groups)
            by_id = {p.id: p for p in chosen}
            pairs = pairs_of(judgments, by_id, {r.id: r for r in responses}, calibration=settings.calibration)
            verdicts = sum(j.has_verdict for j in judgments)
            result = {"comparisons": len(judgments), "verdicts": verdicts, "ties": verdicts - len(pairs), "judge": card}
        if settings.raters != "judge":
            votes = ask_people(work, stage, groups)
            result |= {"votes": len(votes.judgments), "people": len({one.rater_id for one in votes.judgments})}
            if card is not None:
                card["people"] = agreement_with_people(judgments, votes.judgments)
            pairs = team().on_main(lambda: with_people(pairs, votes))
        if len({pair.group_id for pair in pairs}) < 4:
            raise GateError(f"a response was preferred in only {len(pairs)} comparisons: too few to train on")
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        export_preferences(run.folder / f"{work.named('preferences')}.csv", pairs)
        stage.finish({**result, "pairs": len(pairs), "gates": work.gates_of(stage)})
    return stage


def gate_judge(work: Work, stage: Stage, start: Model, judge: LogProbJudge, labelled: Sequence[Pair]) -> Any:
    """The judge's card on pairs whose answer is known, None where there are none; the gates on what it says."""
    recipe = work.recipe
    assert recipe.feedback is not None
    if work.scorer_identity == work.identity_of(recipe.feedback.judge, start):
        work.gate(stage, "independent scorer", False, "the judge that gives the reward would also score the report")
    card = judge_gate(judge, labelled, work.constitution, seed=recipe.seed, batch_size=recipe.batch_size)
    if card is None:
        words = "no labelled pairs to test the judge on; set feedback.labelled_pairs"
        work.gate(stage, "judge beats chance", False, words)
        return None
    floor = recipe.gates.min_judge_accuracy
    good = card["ci"] is not None and card["ci"][0] > floor
    interval = f"{percent(card['ci'][0])} to {percent(card['ci'][1])}" if card["ci"] else "not estimable"
    work.gate(
        stage, "judge beats chance", good,
        f"the judge is right on {percent(card['accuracy'])} of {card['n']} labelled pairs (95% interval {interval})"
        + ("" if good else f", not clearly above {percent(floor)}: these labels are noise"),
    )  # fmt: skip
    return card


def judge_groups(
    work: Work, stage: Stage, judge: LogProbJudge, prompts: Sequence[Prompt], groups: Sequence[Sequence[Response]]
) -> list[Judgment]:
    """The judge's chained judgments of every pair of the responses to each prompt, in judgments.jsonl of the stage."""
    recipe, settings = work.recipe, work.recipe.feedback
    assert settings is not None
    comparisons = comparisons_of(prompts, groups, work.constitution, recipe.seed)
    if not comparisons:
        raise InputError(
            "no principle with a preference text applies to these prompts", file=recipe.constitution or "constitution"
        )
    return stage.rows("judgments.jsonl", Judgment).work(
        comparisons,
        recipe.batch_size,
        lambda batch: (
            judgment(comparison, preference, rater_id=judge.name, abstain_below=settings.abstain_below)
            for comparison, preference in zip(batch, judge(batch), strict=True)
        ),
        follow=follow,
        by_all=isinstance(judge.sampler, LocalSampler),
        label="feedback: judgments",
        quiet=work.run.quiet,
    )


def ask_people(work: Work, stage: Stage, groups: Sequence[Sequence[Response]]) -> Votes:
    """What people said of the responses that they are asked about. GateError with the page's command while some are open."""
    settings, folder = work.recipe.feedback, work.run.folder
    assert settings is not None
    share = settings.human_share if settings.raters == "mixed" else 1.0
    asked = sample_for_people(groups, share, work.recipe.seed)
    write_jsonl(stage.path(TO_LABEL), (one for group in asked for one in group))
    votes = team().on_main(lambda: Votes(folder / FOLDER, asked))
    words = f"people have compared the answers to {len(asked) - votes.open} of {len(asked)} prompts"
    if votes.open:
        words += f", {votes.open} are open: `charter label {folder}` opens the page, and the same command as now goes on after it"
    work.gate(stage, "people have answered", not votes.open, words)
    return votes


def take_pairs(work: Work) -> Stage:
    """Pairs from the recipe's files, as they are or a draw of whole groups."""
    settings = work.recipe.feedback
    assert settings is not None
    inputs = {"pairs": content_id([file_hash(Path(file)) for file in settings.pairs]), "seed": str(work.recipe.seed)}
    with work.run.stage("feedback", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        files = [read_pairs(Path(file)) for file in settings.pairs]
        pairs = [pair for file in files for pair in file.pairs]
        n_read, most = len(pairs), settings.max_pairs
        if most is not None and n_read > most:
            groups: dict[str, list[Pair]] = {}
            for pair in pairs:
                groups.setdefault(pair.group_id, []).append(pair)
            order = sorted(groups, key=lambda group: derive_seed(work.recipe.seed, "pairs", group))
            pairs = [pair for group in order for pair in groups[group]][:most]
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        excluded = sum((Counter(file.excluded) for file in files), Counter[str]())
        stage.finish({"read": n_read, "excluded": dict(excluded), "pairs": len(pairs), "gates": []})
    return stage


def pair_revisions(work: Work, prompts: Stage, revisions: Stage) -> Stage:
    """The last usable revision of each prompt over the answer that it began from; nobody compares."""
    settings = work.recipe.feedback
    assert settings is not None
    inputs = {"prompts": prompts.output_hash, "revise": revisions.output_hash}
    with work.run.stage("feedback", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        by_id = {p.id: p for p in read_jsonl(prompts.path("prompts.jsonl"), Prompt)}
        first = {row.prompt_id: row.original.text for row in read_jsonl(revisions.path("revisions.jsonl"), Revision)
                 if row.round == 1}  # fmt: skip
        last = {row.prompt_id: row.revision.text for row in sorted(usable_revisions(revisions), key=lambda row: row.round)}
        pairs = [
            Pair(prompt=by_id[key], chosen=text, rejected=first[key], group_id=key)
            for key, text in last.items()
            if text != first[key]
        ]
        if len(pairs) < 4:
            raise GateError(f"only {len(pairs)} revisions differ from their answers: too few to train on")
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        export_preferences(work.run.folder / "preferences.csv", pairs)
        stage.finish({"pairs": len(pairs), "gates": []})
    return stage


def pair_by_contrast(work: Work, prompts: Stage, start: Model) -> Stage:
    """Pairs without a judge (Yang et al. 2023, RLCD): each prompt is answered twice, once asked for a good answer and once for a
    bad one; the answers are stored behind the prompt as it was. Identical answers make no pair and count as ties."""
    recipe = work.recipe
    settings = recipe.feedback
    assert settings is not None
    assert settings.contrast is not None
    inputs = {
        "prompts": prompts.output_hash, "sft": start.hash, "batch": str(recipe.batch_size),
        "generator": work.hash_of(settings.generator, start),
    }  # fmt: skip
    with work.run.stage(work.named("feedback"), settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        chosen = prompts_to_compare(prompts, settings.prompts)
        sampler = work.sampler(work.folder_of(settings.generator, start), settings.generator)
        sides = [
            answer(work, stage, f"responses.{name}.jsonl", sampler, [asked_for(p, words) for p in chosen], 1)
            for name, words in (("positive", settings.contrast.positive), ("negative", settings.contrast.negative))
        ]
        pairs = [
            Pair(prompt=prompt, chosen=better.text, rejected=worse.text, group_id=prompt.id)
            for prompt, better, worse in zip(chosen, *sides, strict=True)
            if better.text != worse.text
        ]
        if len(pairs) < 4:
            raise GateError(f"only {len(pairs)} prompts got two different answers: too few to train on")
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        export_preferences(work.run.folder / f"{work.named('preferences')}.csv", pairs)
        stage.finish({"comparisons": len(chosen), "verdicts": len(pairs), "pairs": len(pairs), "judge": None,
                      "ties": len(chosen) - len(pairs), "gates": []})  # fmt: skip
    return stage
