"""What a comparison found: contrasts, ranks, and the rules of their words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from charter import __version__
from charter.comparing.paired import Correction

RULES = {
    "better, worse": "The 95% interval of the difference excludes 0, and p, corrected for all comparisons here, is below 0.05. "
    "The word is about the second model. Where a metric has no better direction the words are higher and lower.",
    "equivalent": "Only with a margin: the interval of two one-sided tests lies inside −margin to +margin, so that any "
    "difference that matters is ruled out. It goes before better and worse: a difference inside the margin does not matter.",
    "no evidence": "Neither. It does not say that the models are equal; see the smallest detectable difference.",
}


@dataclass(frozen=True)
class Contrast:
    """One metric from model ``a`` to model ``b``: ``difference`` is b minus a over the ``n`` items that both have scored.

    ``n_missing``: items that only one side has; ``n_unscored``: items of both without a score on some side. ``discordant`` and
    ``flips`` (keys of items) are those of scores 0 and 1, None for others. ``minimum_detectable``: the smallest difference
    that 80% of such comparisons would find. Shares are in [0, 1], differences in the metric's unit, intervals at 95% but
    ``equivalence_ci``, which needs a ``margin``.
    """

    name: str
    a: str
    b: str
    n: int
    n_missing: int
    n_unscored: int
    difference: float | None
    ci: tuple[float, float] | None
    p: float | None
    p_corrected: float | None
    discordant: tuple[int, int] | None
    method: str
    verdict: str
    value_a: float | None
    value_b: float | None
    binary: bool
    better: str | None
    n_clusters: int
    design_effect: float
    minimum_detectable: float | None
    mcnemar_p: float | None
    margin: float | None
    equivalence_ci: tuple[float, float] | None
    equivalence_level: float | None
    flips: Mapping[str, list[str]] | None = field(repr=False)
    missing: Mapping[str, list[str]] = field(repr=False)
    unscored: list[str] = field(repr=False)


@dataclass(frozen=True)
class Rank:
    """The rank of a model in one metric: 1 is best; ``ranks`` are those that the comparisons leave open, ``tied_with`` the
    models from which it cannot be told apart."""

    name: str
    model: str
    value: float | None
    n: int
    ranks: tuple[int, int]
    tied_with: list[str]


@dataclass(frozen=True)
class Findings:
    """All contrasts of two or more files, the ranks (three or more), the files, and in words what of them was not compared."""

    files: list[dict[str, Any]]
    contrasts: list[Contrast]
    ranks: list[Rank]
    correction: Correction
    left_out: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            "contrasts": [asdict(contrast) for contrast in self.contrasts],
            "ranks": [asdict(rank) for rank in self.ranks],
            "files": self.files,
            "left_out": self.left_out,
            "correction": self.correction,
            "rules": RULES,
            "charter_version": __version__,
        }
