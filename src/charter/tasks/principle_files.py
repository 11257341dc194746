"""The work behind the commands on principles: files in, a judge asked, files and tables out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from charter.constitution.constitution import Constitution, Principle, load_constitution, save_constitution
from charter.errors import InputError
from charter.judging.candidates import Candidates, gather_candidates, propose, read_candidates
from charter.judging.executor_card import CARD_PROTOCOLS, comparable_pairs, executor_card
from charter.judging.explanation import Parting, explain_group, parted_shares, partings
from charter.judging.inference import EVERYONE, Inference, constitution_of, groups_of, held_out_pairs, infer
from charter.judging.judge import LanguageModelJudge
from charter.judging.protocols import PROTOCOLS
from charter.judging.vote_pairs import Panel, PeoplesPairs, ask_principles, read_peoples_pairs
from charter.models.load import pick_device
from charter.models.sampling.sampler import LocalSampler, Sampler
from charter.models.trunk import load_trunk
from charter.reading.card import read_groups, shown
from charter.reading.pairs import read_pairs
from charter.recipe.source import locate
from charter.records import RaterKind
from charter.run.files import atomic_path, describe, write_json
from charter.votes.annotated_pairs import MAJORITY, PRINCIPLE_TYPE, AnnotatedPair, Annotator, annotated_pairs

NAME = 26  # characters of a name in a table
TEXT = 100  # of a text
CAUSES = {"within": "one judge reads it in two ways", "between": "executors differ about it"}


@dataclass(frozen=True)
class Request:
    """Whose votes are read, and which judge is asked about them."""

    judgments: Path
    rater_kinds: tuple[str, ...]
    by: str | None
    groups: Path | None
    model: str
    endpoint: str | None
    api_key_env: str | None
    answers: Path
    protocol: str
    quiet: bool

    def __post_init__(self) -> None:
        """InputError if options do not fit together."""
        check_protocol(self.protocol)
        if self.protocol == "likelihood" and self.endpoint:
            raise InputError("--protocol likelihood: a server gives no likelihood of whole responses; use another protocol")
        if self.by not in (None, "rater", "group"):
            raise InputError(f"--by {self.by!r}: rater or group")
        if (self.by == "group") != (self.groups is not None):
            raise InputError("--by group and --groups FILE belong together")
        if unknown := [kind for kind in self.rater_kinds if kind not in get_args(RaterKind)]:
            raise InputError(f"--rater-kind {unknown[0]!r}: one of {', '.join(get_args(RaterKind))}")
        if self.api_key_env and not self.endpoint:
            raise InputError("--api-key-env is for --endpoint; a local model needs no key")

    def votes(self) -> PeoplesPairs:
        return read_peoples_pairs(self.judgments, self.rater_kinds)  # type: ignore[arg-type]  # checked

    def masks(self, votes: PeoplesPairs) -> dict[str, Any]:
        """The votes of everyone, then by rater or group."""
        return groups_of(votes, self.by, read_groups(self.groups) if self.groups else None)

    def sampler(self) -> Sampler:
        """The model that answers. InputError if the server's address or the key is wrong."""
        if self.endpoint is None:
            return local_sampler(self.model)
        from charter.endpoints.endpoint import EndpointSampler
        from charter.endpoints.settings import EndpointSettings

        if self.model.startswith("package:"):
            raise InputError("--endpoint needs the model's name there; give --model NAME")
        try:
            settings = EndpointSettings(url=self.endpoint, model=self.model, api_key_env=self.api_key_env)
        except ValidationError as error:
            field, words = describe(error)
            raise InputError(words, field={"url": "--endpoint", "api_key_env": "--api-key-env"}.get(field, field)) from None
        return EndpointSampler("endpoint", settings, self.answers)

    def judge(self, sampler: Sampler) -> LanguageModelJudge:
        return PROTOCOLS[self.protocol](sampler)


def check_protocol(name: str) -> None:
    """InputError if no judge is read in this way."""
    if name not in PROTOCOLS:
        raise InputError(f"--protocol {name!r}: one of {', '.join(PROTOCOLS)}")


def local_sampler(model: str) -> LocalSampler:
    """A model of this machine under the name of its folder."""
    return LocalSampler(
        load_trunk(locate(model, Path.cwd()), device=pick_device("auto")), Path(model.removeprefix("package:")).name
    )


def infer_from_files(
    request: Request, out: Path, supplied: Path | None, n_proposals: int, annotated: Path | None, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Write the constitution that votes follow, one more for each rater or group, and the judge's votes; result and table."""
    if supplied is None and not n_proposals:
        raise InputError("no candidates; give --candidates FILE, or --propose N to let the model write some")
    if out.suffix not in (".yaml", ".yml"):
        raise InputError("a constitution is written as YAML; end --out with .yaml", file=out)
    if out.is_dir():
        raise InputError("is a folder, not a file", file=out)
    votes = request.votes()
    masks = request.masks(votes)
    principles = read_candidates(supplied) if supplied else []
    sampler = request.sampler()
    held_out = held_out_pairs(votes, seed)
    balance = votes.balance()
    choosing = [(votes.pairs[n], float(balance[n])) for n in np.flatnonzero(~held_out & (balance != 0)).tolist()]
    candidates = gather_candidates(principles, propose(sampler, choosing, n=n_proposals, seed=seed) if n_proposals else [])
    if not candidates.principles:
        raise InputError(f"no usable candidate: {counted(candidates.left_out)}", file=supplied)
    panel = ask_principles(request.judge(sampler), candidates.principles, votes.pairs, quiet=request.quiet)
    inferences = infer(votes, panel, candidates.principles, seed=seed, groups=masks)
    files = write_constitutions(inferences, candidates.principles, out, request.judgments.name)
    votes_file = out.with_suffix(".votes.jsonl")
    write_judged(votes_file, votes, panel, candidates.principles, held_out)
    result: dict[str, Any] = {
        **vote_counts(votes), "candidates": len(candidates.principles), "proposed": candidates.proposed,
        "duplicates": candidates.duplicates, "candidates_left_out": candidates.left_out, "judge": request.model,
        "protocol": request.protocol, "unread": panel.unread, "groups": [inference.figures() for inference in inferences],
        "constitution": files.get(EVERYONE), "constitutions": files, "judged": str(votes_file),
    }  # fmt: skip
    lines = [*vote_lines(result), candidate_line(candidates, result)]
    for inference in inferences:
        lines += inference_lines(inference, len(candidates.principles))
    lines += [f"written: {place}" for place in (*files.values(), votes_file)]
    if annotated:
        result["annotated_pairs"], words = write_annotated(annotated, votes, panel, candidates.principles)
        lines.append(words)
    return result, lines


def explain_files(request: Request, file: Path, annotated: Path | None, most: int) -> tuple[dict[str, Any], list[str]]:
    """Agreement of people with each principle, and the pairs where they part from the judge; result and tables."""
    rules = load_constitution(file)
    usable = tuple(p for p in rules.principles if p.preference is not None)
    if not usable:
        raise InputError("no principle has a preference text; a judge cannot compare by it", file=file)
    votes = request.votes()
    masks = request.masks(votes)
    constitution = Constitution(title=rules.title, principles=usable)
    sampler = request.sampler()
    panel = ask_principles(request.judge(sampler), usable, votes.pairs, quiet=request.quiet)
    result = vote_counts(votes) | {"judge": request.model, "protocol": request.protocol, "unread": panel.unread}
    result |= {"principles_left_out": len(rules.principles) - len(usable)}
    result["groups"] = [explain_group(name, votes, panel, constitution, mask) for name, mask in masks.items()]
    parted = partings(votes, panel, constitution)
    for row in result["groups"]:
        row["parted"] = parted_shares(partings(votes, panel, constitution, masks[row["group"]]))
    result["partings"] = [row.figures() for row in parted]
    lines = vote_lines(result)
    if result["principles_left_out"]:
        lines.append(f"left out: {result['principles_left_out']} x a principle without a preference text")
    for row in result["groups"]:
        lines += explanation_lines(row)
    lines += parting_lines(parted, most)
    if annotated:
        result["annotated_pairs"], words = write_annotated(annotated, votes, panel, usable)
        lines.append(words)
    return result, lines


def card_from_files(
    file: Path, pairs: Path, models: Sequence[str], protocols: Sequence[str] | None, limit: int, *, quiet: bool
) -> tuple[dict[str, Any], list[str]]:
    """The executor card of a constitution by one model or two; result and table."""
    protocols = list(dict.fromkeys(protocols or CARD_PROTOCOLS))
    for protocol in protocols:
        check_protocol(protocol)
    rules = load_constitution(file)
    loaded = read_pairs(pairs)
    if len({pair.prompt.id for pair in loaded.pairs}) < 2:
        raise InputError(f"pairs of {len(loaded.pairs)} prompt(s); give pairs of at least two", file=pairs)
    chosen = comparable_pairs(loaded.pairs, limit)
    samplers = [local_sampler(model) for model in models]
    names = [f"{sampler.name} ({number})" if len({s.name for s in samplers}) < len(samplers) else sampler.name
             for number, sampler in enumerate(samplers, start=1)]  # fmt: skip
    card = executor_card(dict(zip(names, samplers, strict=True)), rules, chosen, protocols=protocols, quiet=quiet)
    result = {"file": str(file), "models": names, "pairs_read": len(loaded.pairs), "excluded": loaded.excluded, **card}
    return result, card_lines(result)


# -- files -----------------------------------------------------------------------------------------------------------------


def write_constitutions(
    inferences: Sequence[Inference], candidates: Sequence[Principle], out: Path, source: str
) -> dict[str, str]:
    """The file of each group for which something was kept: ``out`` for all votes, NAME.GROUP.yaml for the others."""
    files: dict[str, str] = {}
    for number, inference in enumerate(inferences):
        if not inference.kept:
            continue
        name = re.sub(r"[^\w-]+", "-", inference.group).strip("-")[:40] or f"group-{number}"
        place = out if inference.group == EVERYONE else out.with_suffix(f".{name}{out.suffix}")
        if str(place) in files.values():
            place = out.with_suffix(f".{name}-{number}{out.suffix}")
        save_constitution(constitution_of(inference, candidates, source), place)
        files[inference.group] = str(place)
    return files


def write_judged(path: Path, votes: PeoplesPairs, panel: Panel, candidates: Sequence[Principle], held_out: Any) -> None:
    """A line for each principle and pair that was asked."""
    first = np.bincount(votes.pair, weights=votes.sign > 0, minlength=len(votes.pairs))
    second = np.bincount(votes.pair, weights=votes.sign < 0, minlength=len(votes.pairs))
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for c, principle in enumerate(candidates):
            for n, pair in enumerate(votes.pairs):
                orders = [value if np.isfinite(value) else None for value in panel.orders[c, n].tolist()]
                row = {
                    "principle": principle.id, "prompt_id": pair.prompt.id, "first": pair.first.id, "second": pair.second.id,
                    "first_as_a": orders[0], "first_as_b": orders[1], "margin": float(panel.margins[c, n]),
                    "votes_first": int(first[n]), "votes_second": int(second[n]), "held_out": bool(held_out[n]),
                }  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_annotated(path: Path, votes: PeoplesPairs, panel: Panel, principles: Sequence[Principle]) -> tuple[str, str]:
    """Votes and principles as annotated pairs; the place and what is to be said of it."""
    several = len(votes.raters) > 1
    people = [Annotator("majority", "Majority of the raters", MAJORITY)] if several else []
    people += [Annotator(name, f"Rater {name}", "human") for name in votes.raters]
    annotators = [*people, *(Annotator(p.id, p.preference or "", PRINCIPLE_TYPE) for p in principles)]
    document, left_out = annotated_pairs(path.stem, annotators, preferences(votes, panel, len(people)))
    write_json(path, document)
    words = f"; left out: {left_out} x a dialogue that cannot be read as turns" if left_out else ""
    return str(path), f"written: {path}{words}"


def preferences(votes: PeoplesPairs, panel: Panel, n_people: int) -> Iterator[AnnotatedPair]:
    """Each pair with the preferences of raters and principles."""
    by_rater: dict[tuple[int, int], float] = {}
    for n, who, sign in zip(votes.pair.tolist(), votes.rater.tolist(), votes.sign.tolist(), strict=True):
        by_rater[n, who] = by_rater.get((n, who), 0.0) + sign
    of_pair: dict[int, dict[int, float]] = {}
    several = n_people > len(votes.raters)
    for (n, who), balance in by_rater.items():
        of_pair.setdefault(n, {})[who + several] = balance
    balance_of = votes.balance().tolist()
    for n, pair in enumerate(votes.pairs):
        people = ({0: balance_of[n]} if several else {}) | of_pair.get(n, {})
        judged = {n_people + c: float(panel.margins[c, n]) for c in range(len(panel.margins))}
        yield AnnotatedPair(pair.prompt, pair.first, pair.second, people | judged)


# -- tables ----------------------------------------------------------------------------------------------------------------


def counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{n} x {reason}" for reason, n in reasons.items()) or "none"


def vote_counts(votes: PeoplesPairs) -> dict[str, Any]:
    return {"votes": len(votes.pair), "raters": len(votes.raters), "pairs": len(votes.pairs), "left_out": votes.left_out,
            "turned": votes.turned}  # fmt: skip


def vote_lines(result: Mapping[str, Any]) -> list[str]:
    """What was read, what was left out, and which judge was asked."""
    lines = [f"{result['votes']} votes of {result['raters']} rater(s) on {result['pairs']} pairs of responses"]
    lines += [f"left out: {n} x {reason}" for reason, n in result["left_out"].items()]
    if result["turned"]:
        lines.append(f"turned round: {result['turned']} x asked for the more harmful response")
    unread = f"; {result['unread']} answers could not be read" if result["unread"] else ""
    return [*lines, f"judge: {shown(result['judge'], TEXT)} by protocol {result['protocol']}{unread}"]


def candidate_line(candidates: Candidates, result: Mapping[str, Any]) -> str:
    left = f"; left out: {counted(candidates.left_out)}" if candidates.left_out else ""
    return (f"{result['candidates']} candidates ({candidates.proposed} texts proposed by the model), {candidates.duplicates} "
            f"duplicates removed{left}")  # fmt: skip


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def interval(ci: Sequence[float] | None) -> str:
    return f"{ci[0]:.1%} to {ci[1]:.1%}" if ci else "–"


def columns(what: str, n: int) -> str:
    """The head of a table of ``n`` principles; ``what`` is the share in it."""
    return f"  {'principle':{NAME}}{what:>10}  {f'interval for {n} at once':26}{'votes':>7}{'coverage':>10}"


def cells(row: Mapping[str, Any], what: str) -> str:
    """A principle under these columns."""
    share = f"{percent(row[what]):>10}  {interval(row['ci']):26}"
    return f"  {shown(row['id'], NAME - 2):{NAME}}{share}{row['n']:>7}{percent(row['coverage']):>10}"


def inference_lines(inference: Inference, n_candidates: int) -> list[str]:
    """The table of a group: what is kept, by weight, then the others, by accuracy."""
    title = f"{shown(inference.group, TEXT)}: {inference.n_votes} votes, {inference.n_held_out} of them held out"
    if inference.problem:
        return ["", f"{title}; nothing inferred: {inference.problem}"]
    rows = sorted(inference.rows, key=lambda row: (not row["kept"], -(row["weight"] or 0), -(row["accuracy"] or 0)))
    lines = ["", title, columns("accuracy", n_candidates) + f"{'weight':>8}{'p':>9}"]
    for row in rows:
        weight = "" if row["weight"] is None else f"{row['weight']:.2f}"
        p = "" if row["p"] is None else f"{row['p']:.2g}"
        lines.append(f"{cells(row, 'accuracy')}{weight:>8}{p:>9}  {'kept' if row['kept'] else row['reason']}")
    if (share := inference.prediction) is None:
        return [*lines, "  nothing kept"]
    whole = f"{percent(share.value)} ({interval(share.ci)}) of {share.n} held-out votes"
    return [*lines, f"  the kept principles together predict {whole}"]


def explanation_lines(group: Mapping[str, Any]) -> list[str]:
    """The table of a group of raters."""
    whole = f"{percent(group['agreement'])} ({interval(group['ci'])})"
    title = f"{shown(group['group'], TEXT)}: {group['votes']} votes; they agree with the judge under all principles on {whole}"
    lines = ["", title, columns("agreement", len(group["principles"])) + f"{'weight':>8}{'p':>9}{'parted':>8}  followed"]
    for row in group["principles"]:
        parted = group["parted"].get(row["id"], 0)
        lines.append(f"{cells(row, 'agreement')}{row['weight']:>8.2f}{row['p']:>9.2g}{parted:>8}  {row['follows']}")
    return lines


def parting_lines(parted: Sequence[Parting], most: int) -> list[str]:
    """The surest pairs on which people and judge part, under all principles and under each."""
    if not parted or not most:
        return []
    counts = Counter(row.principle for row in parted)
    lines = ["", "where people and judge part, the surest judgments first (texts as they are in the files; --json lists all):"]
    for principle, n in counts.items():
        lines.append(f"  under {shown(principle, NAME) if principle else 'all principles together'}: {n} pairs")
        for row in [row for row in parted if row.principle == principle][:most]:
            lines += [f"    prompt: {shown(row.prompt, TEXT)}", f"      people ({row.votes_people} to {row.votes_judge}): "
                      f"{shown(row.people, TEXT)}", f"      judge  ({row.margin:.2f}): {shown(row.judge, TEXT)}"]  # fmt: skip
    return lines


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """The executor card for the terminal."""
    lines = [f"{card['pairs']} of {card['pairs_read']} pairs, {len(card['principles'])} principles, "
             f"judged by {' and '.join(shown(name, TEXT) for name in card['models'])}"]  # fmt: skip
    lines += [f"left out: {n} x {reason}" for reason, n in card["excluded"].items()]
    if card["principles_left_out"]:
        lines.append(f"left out: {card['principles_left_out']} x a principle without a preference text")
    lines += ["", f"  {'the same verdict':58}{'agreement':>10}  {'95% interval':20}{'verdicts':>9}"]
    for kind in card["kinds"]:
        lines.append(f"  {kind['kind']:58}{percent(kind['agreement']):>10}  {interval(kind['ci']):20}{kind['n']:>9}")
        for row in card["comparisons"]:
            if row["kind"] == kind["kind"]:
                lines.append(
                    f"    {shown(row['name'], 54):56}{percent(row['agreement']):>10}  {interval(row['ci']):20}{row['n']:>9}"
                )
    lines += [f"  published: {row['name']:47}{percent(row['agreement']):>10}  {row['source']}" for row in card["published"]]
    n = len(card["principles"])
    head = f"  {'principle':{NAME}}{'one judge':>10}  {f'interval for {n} at once':26}{'executors':>10}{'parts':>7}{'agree':>8}"
    lines += ["", head]
    for row in card["principles"]:
        within, between, parts = (row[name]["agreement"] for name in ("within", "between", "parts_agreement"))
        start = f"  {shown(row['id'], NAME - 2):{NAME}}{percent(within):>10}  {interval(row['within']['ci']):26}"
        causes = ", ".join(CAUSES[name] for name in row["causes_disagreement"])
        lines.append(f"{start}{percent(between):>10}{row['parts']:>7}{percent(parts):>8}  {causes}".rstrip())
    return lines
