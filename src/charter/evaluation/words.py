"""Numbers of a report in words: signs, units, intervals, and the sentence that an interval allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from charter.metrics import BOUND, COUNT, LOGPROBS, METRICS, SHARE
from charter.records import Filters

Report = Mapping[str, Any]

SHARE_UNITS = {SHARE, "rate", "proportion", "fraction", "probability"}
SPELLED = {"kl": "KL", "eos": "EOS", "sft": "SFT"}
TITLES = {"over_refusal": "Over-refusal", "distinct_2": "Distinct word pairs"}


def number_of(value: Any) -> float | None:
    """A finite number as float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def interval_of(row: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The interval ``ci`` of a row, None if the row has none."""
    ci = row.get("ci") if row else None
    if not isinstance(ci, Sequence) or len(ci) != 2:
        return None
    low, high = number_of(ci[0]), number_of(ci[1])
    return None if low is None or high is None else (low, high)


def mappings_in(source: Any, key: str) -> list[Mapping[str, Any]]:
    """The mappings in the list ``source[key]``; none where the key is missing."""
    rows = source.get(key) if isinstance(source, Mapping) else None
    return [row for row in rows or [] if isinstance(row, Mapping)]


def title_of(name: Any) -> str:
    """``over_refusal`` → ``Over-refusal``; abbreviations in capitals."""
    if name in TITLES:
        return TITLES[name]
    text = " ".join(SPELLED.get(word, word) for word in str(name).split("_"))
    return text if text.isupper() else text[:1].upper() + text[1:]


def sentence(text: Any) -> str:
    """A message as a sentence of the page: a capital first, a full stop last."""
    words = str(text or "").strip()
    return words[:1].upper() + words[1:] + ("" if words[-1:] in ("", ".", "!", "?") else ".")


def scored_by(scorer: Any) -> str:
    """The origin of a number: ``counted``, ``from log-probabilities``, else the scorer."""
    return {COUNT: "counted", LOGPROBS: f"from {LOGPROBS}", BOUND: BOUND}.get(str(scorer), f"scored by {scorer}")


def sampling_words(how: Any) -> str:
    """How the answers of an arm were sampled: `temperature 0.7, top_p 0.9, at most 96 tokens`; empty if it is not known."""
    if not isinstance(how, Mapping) or number_of(how.get("temperature")) is None:
        return ""
    temperature, longest, best_of = how.get("temperature"), how.get("max_new_tokens"), how.get("best_of")
    words = ["the likeliest token at every step" if temperature == 0 else f"temperature {number_text(temperature)}"]
    if temperature:
        words += [f"{key} {value:g}" for key in Filters.model_fields if (value := number_of(how.get(key))) is not None]
    words += [f"at most {longest} tokens"] if longest else []
    return ", ".join(words) + (f"; the best of {best_of}" if best_of else "")


def lower_first(title: str) -> str:
    """A title inside a sentence: ``Over-refusal`` → ``over-refusal``, but ``KL`` as it is."""
    return title if title[:2].isupper() else title[:1].lower() + title[1:]


def either(names: Sequence[str], word: str = "or") -> str:
    """``a, b or c``."""
    return f" {word} ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def with_sign(text: str) -> str:
    """With a true minus sign, and a plus in front of a positive number."""
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"


def number_text(value: Any, share: bool = False) -> str:
    """Three digits that matter; percent where ``share``; a dash where there is no number."""
    number = number_of(value)
    if number is None:
        return "–"
    if share:
        return f"{number * 100:.1f}%"
    size = abs(number)
    text = f"{number:,.0f}" if size >= 1000 or number == int(number) else f"{number:.{1 if size >= 100 else 2}f}"
    if 0 < size < 0.01:
        text = f"{number:.2g}"
    return text.replace("-", "−")


def range_text(ci: tuple[float, float] | None, share: bool = False) -> str:
    """``low to high`` of a value; "no interval" where there is none."""
    return "no interval" if ci is None else f"{number_text(ci[0], share)} to {number_text(ci[1], share)}"


def is_share(name: Any, report: Report) -> bool:
    """Whether a metric is shown in percent: by its unit in the report, else by the built-in one."""
    units = {row.get("unit") for row in mappings_in(report, "metrics") if row.get("name") == name and row.get("unit")}
    return bool(units & SHARE_UNITS) or (not units and name in METRICS and METRICS[name].unit == SHARE)


def better_of(name: Any, report: Report) -> str | None:
    """Which way a metric is to go, "lower" or "higher"; None if nobody declared it."""
    declared = (report.get("better") or {}).get(name)
    return declared or (METRICS[name].better if name in METRICS else None)


def difference_text(value: Any, name: Any, report: Report) -> str:
    """A signed difference, in points (hundredths) where the metric is a share."""
    number = number_of(value)
    if number is None:
        return "–"
    if number == 0:
        return "no change"
    if is_share(name, report):
        return f"{with_sign(f'{number * 100:.1f}')} points"
    return number_text(number) if number < 0 else f"+{number_text(number)}"


def interval_text(ci: tuple[float, float] | None, name: Any, report: Report) -> str:
    """The interval of a difference, signed."""
    if ci is None:
        return "no interval"
    if is_share(name, report):
        low, high = with_sign(f"{ci[0] * 100:.1f}"), with_sign(f"{ci[1] * 100:.1f}")
    else:
        low, high = (number_text(end) if end < 0 else f"+{number_text(end)}" for end in ci)
    return f"95% interval {low} to {high}"


def is_often_unscored(row: Mapping[str, Any]) -> bool:
    """Whether more than 5% of the answers or pairs behind a number have no score."""
    n, unscored = (number_of(row.get(key)) or 0 for key in ("n", "n_unscored"))
    return unscored > 0.05 * (n + unscored)


def metric_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    """One number of the main table. Where an event was never seen, the bound stands in place of 0%."""
    share = row.get("unit") in SHARE_UNITS
    value, ci, n, unscored = number_of(row.get("value")), interval_of(row), row.get("n"), row.get("n_unscored") or 0
    main, sub = number_text(value, share), ""
    if ci is not None:
        sub = range_text(ci, share)
        if share and value == 0:
            main, sub = f"≤ {number_text(ci[1], True)}", f"none seen in {n}"
        elif share and value == 1:
            main, sub = f"≥ {number_text(ci[0], True)}", f"all of {n}"
    elif value is not None:
        sub = "no interval"
    counts = f"n = {n}" if n is not None else ""
    if unscored:
        counts += f", {unscored} unscored"
    return {"main": main, "sub": sub, "counts": counts, "warn": bool(n) and is_often_unscored(row)}


def contrast_words(row: Mapping[str, Any], report: Report | None = None) -> str:
    """The sentence that an interval allows; "improved" is not available where 0 is inside."""
    ci = interval_of(row)
    if ci is None:
        return "no interval, so no evidence"
    if ci[0] <= 0 <= ci[1]:
        return "no evidence: interval includes 0"
    direction = "lower" if ci[1] < 0 else "higher"
    better = better_of(str(row.get("name")), report or {})
    worth = "" if better is None else " (better)" if better == direction else " (worse)"
    return f"{direction}, interval excludes 0{worth}"


def p_text(p: float | None) -> str:
    """Three decimals, or that it is smaller."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds_text(seconds: float) -> str:
    """Seconds as people read them: ``41.0 s``, ``3 min 6 s``, ``2 h 5 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, whole = round(seconds / 60), round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{minutes // 60} h {minutes % 60} min"
