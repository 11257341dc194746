"""The feedback of several machines as one: the union of the records by id, the same bytes in whatever order it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from charter.errors import InputError
from charter.records import Judgment
from charter.run.files import atomic_path
from charter.votes.evidence import FILES, SETS, Evidence, JudgmentFile, R, RecordFile, find_judgments, new_folder, same
from charter.votes.judgments import why_forgotten


def merge_folders(sources: Sequence[Path], out: Path) -> dict[str, int]:
    """Merge folders of feedback (or their files of judgments) into a new folder; how many records of each kind it holds, and how
    many judgments are ``repeated``: the same vote from another export, which ratings, agreement and exports count once.

    Records are united by id and written in the order of the ids, so that any order of ``sources`` gives the same bytes.
    InputError where one id stands for two different records.
    """
    with ExitStack() as stack, new_folder(out) as folder:
        opened = []
        for source in sources:
            judgments = find_judgments(source)
            if judgments is None:
                raise InputError("judgments.jsonl is missing; name a folder of feedback or its file of judgments", file=source)
            opened.append(stack.enter_context(Evidence(judgments)))
        if sets := [evidence.sets for evidence in opened if evidence.sets is not None]:
            _write_union(sets, folder / SETS)
        counts = {
            "prompts": _write_union([evidence.prompts for evidence in opened], folder / FILES[0]),
            "responses": _write_union([evidence.responses for evidence in opened], folder / FILES[1]),
            "judgments": _write_union(
                [evidence.judgments for evidence in opened], folder / FILES[2], lambda judgment: held_by(judgment, opened)
            ),
        }
        return counts | {"repeated": count_repeats(folder / FILES[2])}


def merge_judgments(sources: Sequence[Path], out: Path) -> dict[str, int]:
    """Merge files of judgments (or those of folders) into one file, without prompts and responses; how many it holds."""
    with ExitStack() as stack, atomic_path(out) as temporary:
        opened = []
        for source in sources:
            opened.append(JudgmentFile(find_judgments(source) or source))
            stack.callback(opened[-1].close)
        return {"judgments": _write_union(opened, temporary), "repeated": count_repeats(temporary)}


def count_repeats(path: Path) -> int:
    """How many judgments of a file are votes that another one of its chains has as well; views count these once."""
    judgments = JudgmentFile(path)
    try:
        return len(judgments.repeats())
    finally:
        judgments.close()


def held_by(judgment: Judgment, opened: Sequence[Evidence]) -> None:
    """InputError where a judgment names a prompt or a response that none of these folders holds."""
    if is_forgotten(judgment):
        return
    for evidence in opened:
        if judgment.prompt_id in evidence.prompts:
            break
    else:
        opened[0].prompt(judgment)
    for response in judgment.order:
        if not any(response in evidence.responses for evidence in opened):
            opened[0].response(judgment, response)


def is_forgotten(record: R) -> bool:
    return isinstance(record, Judgment) and why_forgotten(record) is not None


def _write_union(parts: Sequence[RecordFile[R]], path: Path, check: Callable[[R], None] | None = None) -> int:
    keys = sorted({key for part in parts for key in part})
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for key in keys:
            holders = [part for part in parts if key in part]
            cut = [part for part in holders if is_forgotten(part[key])]
            if cut:  # forgotten in one folder is forgotten in the union, on whatever day
                holders = [min(cut, key=lambda part: part[key].model_dump_json())]
            first = holders[0][key]
            if check:
                check(first)
            for other in holders[1:]:
                if not same(first, other[key]):
                    raise InputError(f"{type(first).__name__.lower()} {key} differs from that of {holders[0].path}; "
                                     "one of them was changed", file=other.path)  # fmt: skip
            file.write(min(part[key].model_dump_json() for part in holders) + "\n")
    return len(keys)
