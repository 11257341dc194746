"""What the revise stage leaves behind for later stages."""

from __future__ import annotations

from charter.records import Revision
from charter.run.files import read_jsonl
from charter.run.run import Stage


def usable_revisions(revise: Stage) -> list[Revision]:
    """Revisions that are fit to be learned."""
    rows = list(read_jsonl(revise.path("revisions.jsonl"), Revision))
    fit = [r for r in rows if not r.excluded]
    # Without any only behind an overridden "usable revisions" gate, which the report names.
    return fit or [r for r in rows if r.revision.text.strip()]
