"""Charter: align language models to a written constitution and to human votes, and prove whether it worked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charter.comparing.compare import Comparison
    from charter.comparing.paired import Correction

__version__ = "0.1.0"


def compare(
    *sources: str | os.PathLike[str],
    margin: float | Mapping[str, float] | None = None,
    correction: Correction = "holm",
    lower: Sequence[str] = (),
    cluster: str | None = None,
) -> Comparison:
    """Compare models item by item, from two or more result files or runs, as ``charter compare`` does.

    margin: the largest difference that does not matter, for all metrics or by metric. correction: "holm", "bh" or "none", over
    all metrics and pairs. lower: metrics of which less is better. cluster: a field whose value joins items. InputError where a
    file cannot be read, kinds differ, or nothing is shared.
    """
    from charter.comparing.compare import compare_files

    margins: dict[str | None, float] = {}
    if margin is not None:
        margins.update(margin.items() if isinstance(margin, Mapping) else [(None, margin)])
    return compare_files(sources, margins=margins, correction=correction, lower=lower, cluster=cluster)
