"""What the exclusions of a revise stage say: how many of which kind, and which setting to change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from charter.records import Revision
from charter.stages.revise.settings import ReviseSettings

HOT = 0.9  # temperature from which an unfiltered small model often wanders
WORTH_A_WORD = 0.2  # share of the exclusions from which a reason gets its advice


def excluded_words(rows: Sequence[Revision]) -> str:
    """`34 of 40 revisions are excluded (30 revision cut off, 4 empty revision)`; empty if none is."""
    reasons = Counter(row.excluded for row in rows if row.excluded)
    if not reasons:
        return ""
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{reasons.total()} of {len(rows)} revisions are excluded ({listed})"


def changes(rows: Sequence[Revision], settings: ReviseSettings) -> list[str]:
    """What to change so that fewer rows are excluded, for each reason that counts, the most frequent first."""
    reasons = Counter(row.excluded for row in rows if row.excluded)
    counting = [reason for reason, count in reasons.most_common() if count >= WORTH_A_WORD * reasons.total()]
    return list(dict.fromkeys(change for reason in counting for change in change_for(str(reason), settings)))


def change_for(reason: str, settings: ReviseSettings) -> list[str]:
    """The changes that one reason calls for."""
    if "cut off" in reason:
        return [f"raise revise.max_new_tokens above {settings.max_new_tokens}", *cooler(settings)]
    if "template tokens" in reason:
        return cooler(settings) or [stronger(settings)]
    if "equals" in reason:
        return [stronger(settings)]
    return ["look at the template of the model with charter show-tokens", stronger(settings)]


def stronger(settings: ReviseSettings) -> str:
    """How to get better texts of the same kind."""
    if settings.context is not None:
        return "reword revise.context, or name a stronger model as revise.generator"
    return "give revise.few_shots, or name a stronger model as revise.critic"


def cooler(settings: ReviseSettings) -> list[str]:
    """How to keep a model from wandering; nothing where it is filtered or cool already."""
    if settings.filters.words or max(settings.temperatures) < HOT:
        return []
    return ["set revise.top_p to 0.9 or lower revise.temperature"]
