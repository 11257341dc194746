"""Which prompts the report shows side by side: where training made it worse, where better, and a draw of all kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from charter.evaluation.arms import BENIGN, RED_TEAM, VALUES, Arm
from charter.metrics import METRICS
from charter.run.hashes import derive_seed
from charter.statistics import is_scored

N_OF_KIND = 6


def samples_of(
    arms: Mapping[str, Arm], primary: Mapping[str, str], better: Mapping[str, str], n: int = N_OF_KIND
) -> list[dict[str, Any]]:
    """Prompts with the responses of every arm. ``pick`` of each: "worst" and "best", the ``n`` that changed most from ``a`` to
    ``b`` of the primary comparison; "random", up to ``n`` of each kind of prompt, the same draw in every run."""
    base = next(iter(arms.values()))
    first: dict[str, int] = {}
    for i, prompt in enumerate(base.prompts):
        first.setdefault(prompt.id, i)
    a, b = arms.get(primary["a"], base), arms.get(primary["b"], base)
    changes = {i: change_of(a, b, i, primary["name"], better) for i in first.values()}
    order = sorted(changes, key=lambda i: changes[i])
    worst = [i for i in order[:n] if changes[i] < (0, 0)]
    best = [i for i in reversed(order[-n:]) if changes[i] > (0, 0)]
    drawn = random_rows(base, [i for i in first.values() if i not in {*worst, *best}], n)
    picks = [("worst", worst), ("best", best), ("random", drawn)]
    return [{"pick": pick, **sample_of(arms, base, i)} for pick, rows in picks for i in rows]


def change_of(a: Arm, b: Arm, i: int, first: str, better: Mapping[str, str]) -> tuple[float, float]:
    """How much better row ``i`` is in ``b`` than in ``a``: in the primary metric, then in the sum of all that can be better. An
    unscored side counts as no change."""
    gains = {}
    for name, direction in {**{m.name: m.better for m in a.measured if m.better}, **better}.items():
        before, after = value_of(a, name, i), value_of(b, name, i)
        known = before is not None and after is not None and is_scored(before) and is_scored(after)
        gains[name] = 0.0 if not known else (after - before) * (1 if direction == "higher" else -1)  # type: ignore[operator]
    return gains.get(first, 0.0), sum(gains.values())


def value_of(arm: Arm, name: str, i: int) -> float | None:
    """A metric or measure of one row; None if it is not about the row's prompt, or the arm lacks it."""
    if name in arm.measures:
        return arm.measures[name][i]
    metric = METRICS.get(name)
    if metric not in arm.measured or not arm.is_about(metric, i):
        return None
    return VALUES[name](arm, i)


def random_rows(arm: Arm, rows: Sequence[int], n: int) -> list[int]:
    """Up to ``n`` rows of red-team prompts, of harmless ones and of neither, drawn by the hash of the prompt."""
    drawn: list[int] = []
    for kinds in ({RED_TEAM}, {BENIGN}, set[str]()):  # the last: neither
        of_kind = [i for i in rows if {RED_TEAM, BENIGN} & set(arm.prompts[i].tags) == kinds]
        drawn += sorted(of_kind, key=lambda i: derive_seed("samples", arm.prompts[i].id))[:n]
    return drawn


def sample_of(arms: Mapping[str, Arm], base: Arm, i: int) -> dict[str, Any]:
    """Row ``i`` of every arm."""
    prompt = base.prompts[i]
    return {
        "prompt_id": prompt.id,
        "prompt": prompt.last_turn,
        "tags": list(prompt.tags),
        "principle": prompt.principle,
        "responses": {name: arm.responses[i].text for name, arm in arms.items()},
        "harmful": {name: arm.verdicts[i].harmful for name, arm in arms.items()},
        "refusal": {name: arm.verdicts[i].refusal for name, arm in arms.items()},
        "measures": {name: {key: numbers[i] for key, numbers in arm.measures.items()} for name, arm in arms.items()},
    }
