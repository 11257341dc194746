"""The measured part of `charter constitution check`: a model judges labelled pairs under every principle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from charter.constitution.constitution import Constitution
from charter.constitution.export import labelled_pairs
from charter.errors import InputError
from charter.reading.pairs import read_pairs
from charter.recipe.source import locate
from charter.records import Pair
from charter.stages.feedback.settings import FeedbackSettings
from charter.stages.gates import percent
from charter.tasks.conversation import escape_controls

BATCH = 64


def measured_check(
    constitution: Constitution, file: Path, pairs: str | None, model: str | None, protocol: str, *, most: int, seed: int
) -> dict[str, Any]:
    """The result of :func:`measure_principles`; empty without a model. InputError for an unknown protocol, for pairs without a
    model, and for a model without pairs."""
    from charter.judging.protocols import PROTOCOLS, judges_of

    if protocol not in ("auto", *PROTOCOLS):
        raise InputError(f"--protocol: unknown protocol {protocol!r}; use auto, {', '.join(PROTOCOLS)}")
    if model is None:
        if pairs is not None:
            raise InputError("--pairs needs a judge; give --model too")
        return {}
    from charter.judging.principles import measure_principles
    from charter.models.load import pick_device
    from charter.models.sampling.sampler import LocalSampler
    from charter.models.trunk import load_trunk

    labelled: list[Pair] = read_pairs(Path(locate(pairs, Path.cwd()))).pairs if pairs else labelled_pairs(constitution).rows
    if not labelled:
        raise InputError("no labelled pairs to measure on; give --pairs, or examples with good and bad answers", file=file)
    if all(p.preference is None for p in constitution.principles):
        raise InputError("no principle has a preference, so a judge has nothing to compare by", file=file)
    sampler = LocalSampler(load_trunk(locate(model, Path.cwd()), device=pick_device("auto")), "judge")
    judges = judges_of(protocol, sampler, constitution)
    floor = FeedbackSettings().abstain_below
    measured = measure_principles(judges, labelled, constitution, seed=seed, most=most, floor=floor, batch_size=BATCH)
    if measured["card"] is None:
        raise InputError(f"no principle with a preference applies to any of {len(labelled)} pairs; tag their prompts", file=file)
    return measured


def measured_lines(constitution: Constitution, measured: Mapping[str, Any]) -> Iterator[str]:
    """The figures of every principle as a table, or what could not be known without a model."""
    for p in constitution.principles:
        if p.support:
            yield f"{p.id}: support " + ", ".join(f"{escape_controls(name)} {share:.0%}" for name, share in p.support.items())
    if not measured:
        yield ("checked by their words alone; with --model FOLDER and --pairs FILE also: the figures of each principle, "
               "contradictions in verdicts, and principles that never decide")  # fmt: skip
        return
    card = measured["card"]
    yield (f"{measured['pairs']} of {measured['pairs_in_file']} labelled pairs, judge read by {card['protocol']}, right on "
           f"{percent(card['accuracy'])} of {card['n']}; a margin decides above {measured['noise_nats']:.2f} nats")  # fmt: skip
    if measured["ties"]:
        yield f"{measured['ties']} pairs left out: ties, which have no better answer"
    if measured["without_principle"]:
        yield f"{measured['without_principle']} pairs left out: no principle applies to them"
    ranked = any(row["rules"] is not None for row in measured["measured"])
    width = max(len(row["principle"]) for row in measured["measured"])
    yield f"{'':{width}}  {'right on its pairs':24}{'right on all':24}{'decides':24}" + ("  by priority" if ranked else "")
    for row in measured["measured"]:
        cells = "".join(f"{cell(row[name]):24}" for name in ("labelled", "accuracy", "decides"))
        yield f"{row['principle']:{width}}  {cells}" + (f"  {row['rules']}" if ranked else "")


def cell(figure: Mapping[str, Any]) -> str:
    """`97% [92, 99] of 100`."""
    if figure["share"] is None or figure["ci"] is None:
        return "–"
    return f"{figure['share']:.0%} [{figure['ci'][0] * 100:.0f}, {figure['ci'][1] * 100:.0f}] of {figure['n']}"
