"""Which prompts a run takes, decided for a million prompts in the memory of an index.

Every prompt is written once to a file without a name; memory keeps the hash of what it says, its id, its stratum, its length and
the place where it begins. Duplicates, splits and samples are decided on those arrays; the chosen prompts are read again one by
one. The prompt stage writes them (:func:`prepare_prompts`); plans and previews count and read them (:func:`taken_prompts`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from array import array
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charter.errors import InputError
from charter.reading.dealing import apportion, what_it_says
from charter.reading.prompts import KINDS, check_output, is_kind, read_prompts, write_prompts
from charter.records import Prompt, Split, content_id
from charter.run.files import write_jsonl
from charter.run.team import team

Numbers = NDArray[np.int64]
"""Numbers of prompts of a spool, in some order."""
SPLITS: tuple[Split, ...] = ("train", "test")
BATCH = 256


class PromptSpool:
    """Prompts in an unnamed file beside ``out``, gone when it is closed or the process ends; 45 bytes of each in memory.

    ``digests``: 16 bytes of the hash of what it says. ``ids``: its id, 16 hex digits. ``starts``: the byte at which its line
    begins. ``groups``: number of its (principle, tags). ``file_splits``: the split of its file, -1 for none.
    ``characters``: of all its messages.
    """

    def __init__(self, out: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        self.out = out
        """What is made of the prompts: errors of the disk name it, since the spool has no name."""
        self._file = tempfile.TemporaryFile(dir=out.parent, prefix=".prompts-")  # noqa: SIM115 - held until the spool is closed
        self._digests, self._ids, self._starts = array("Q"), array("Q"), array("Q")
        self._groups, self._characters, self._file_splits = array("I"), array("I"), array("b")
        self._numbers: dict[tuple[str | None, tuple[str, ...]], int] = {}

    def __enter__(self) -> PromptSpool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # of bytes that nobody will read
            self._file.close()

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, prompts: Iterable[Prompt]) -> None:
        """Append prompts."""
        end = self._file.seek(0, 2)
        for prompt in prompts:
            digest = what_it_says(prompt)
            self._digests.extend((int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")))
            self._ids.append(int(prompt.id, 16))
            self._starts.append(end)
            self._groups.append(self._numbers.setdefault((prompt.principle, prompt.tags), len(self._numbers)))
            self._file_splits.append(-1 if prompt.split is None else SPLITS.index(prompt.split))
            self._characters.append(sum(len(message.content) for message in prompt.messages))
            end += self._write(prompt.model_dump_json().encode() + b"\n")
        self._write(b"", flush=True)

    def _write(self, line: bytes, *, flush: bool = False) -> int:
        try:
            if flush:
                self._file.flush()
            return self._file.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.out)) from None

    def read(self, rows: Iterable[int]) -> Iterator[Prompt]:
        """The prompts of these numbers, one at a time."""
        for row in rows:
            self._file.seek(self._starts[row])
            yield Prompt.model_validate_json(self._file.readline())

    def digest(self) -> str:
        """Of what all of its prompts say, in their order."""
        return hashlib.sha256(self._digests.tobytes()).hexdigest()

    def everything(self) -> Numbers:
        """All numbers, in the order in which the prompts came."""
        return np.arange(len(self), dtype=np.int64)

    def unique(self) -> Numbers:
        """The numbers of the first of all prompts that say the same (:func:`charter.reading.dealing.what_it_says`), in order."""
        digests = np.frombuffer(self._digests, dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equal ones the first comes first
        differs = np.ones(len(order), dtype=bool)
        differs[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
        return np.sort(order[differs])

    def shorter(self, rows: Numbers, characters: int) -> Numbers:
        """Those with fewer characters than that."""
        return rows[np.frombuffer(self._characters, dtype=np.uint32)[rows] < characters]

    def of_kind(self, rows: Numbers, kind: str) -> Numbers:
        """Those of a kind (:func:`charter.reading.prompts.is_kind`)."""
        fits = np.array([is_kind(tags, kind) for _, tags in self._numbers], dtype=bool)
        return rows[fits[self._group_of(rows)]] if len(rows) else rows

    def split(self, rows: Numbers, *, test_fraction: float, seed: int) -> NDArray[np.int8]:
        """0 for train and 1 for test, in the order of ``rows``; of prompts that say the same only one may be among them.

        A split of the file stays. The others are dealt by a hash of id and seed within each stratum of (principle, tags), so that
        the test part is ``test_fraction`` of every stratum and of the whole, to within one prompt unless the files' splits exceed
        it, whatever the order of the prompts."""
        file_splits = np.frombuffer(self._file_splits, dtype=np.int8)[rows]
        strata, names = self._strata(rows, lambda principle, tags: content_id(principle, sorted(tags)))
        quotas = apportion(self._sizes(strata, names), test_fraction, seed)
        ranks, dealt = self.ranks(rows, seed), file_splits.copy()
        for number, name in enumerate(names):
            members = np.flatnonzero(strata == number)
            free = members[file_splits[members] < 0]
            free = free[np.argsort(ranks[free], kind="stable")]
            wanted = max(0, quotas[name] - int((file_splits[members] == 1).sum()))
            dealt[free[:wanted]], dealt[free[wanted:]] = 1, 0
        return dealt

    def take(self, rows: Numbers, n: int, *, seed: int, by: Sequence[str] = ("principle",)) -> Numbers:
        """``n`` of the rows, whose mix over the fields ``by`` is that of all rows to within one each. Which, and their order,
        follow from their ids and the seed, not from the order of the rows."""
        fields: dict[str, Callable[[str | None, tuple[str, ...]], Any]] = {
            "principle": lambda principle, _: principle, "tags": lambda _, tags: tags,
        }  # fmt: skip
        strata, names = self._strata(rows, lambda *group: content_id([fields[field](*group) for field in by]))
        quotas = apportion(self._sizes(strata, names), n / len(rows) if len(rows) else 0.0, seed)
        order = np.argsort(self.ranks(rows, seed), kind="stable")
        chosen = np.zeros(len(rows), dtype=bool)
        for number, name in enumerate(names):
            members = order[strata[order] == number]
            chosen[members[: quotas[name]]] = True
        return rows[order[chosen[order]]]

    def deal(
        self, rows: Numbers, *, train: int | None, test: int | None, test_fraction: float, seed: int
    ) -> dict[tuple[Split, str], Numbers]:
        """The rows that a run takes, by split and kind, in its order: of each at most ``train`` or ``test``."""
        dealt = self.split(rows, test_fraction=test_fraction, seed=seed)
        parts = {}
        for number, (split, wanted) in enumerate(zip(SPLITS, (train, test), strict=True)):
            for kind in KINDS:
                pool = self.of_kind(rows[dealt == number], kind)
                n = min(wanted, len(pool)) if wanted else len(pool)
                parts[split, kind] = self.take(pool, n, seed=seed, by=("principle", "tags"))
        return parts

    def without_principle(self, rows: Numbers) -> int:
        """How many of the rows have no principle, so that the prompt stage asks the model for theirs."""
        bare = np.array([principle is None for principle, _ in self._numbers], dtype=bool)
        return int(bare[self._group_of(rows)].sum()) if len(rows) else 0

    def ranks(self, rows: Numbers, seed: int) -> NDArray[np.uint64]:
        """The hash of id and seed by which prompts are dealt."""
        return np.fromiter((int(content_id(seed, f"{self._ids[row]:016x}"), 16) for row in rows), np.uint64, len(rows))

    def _group_of(self, rows: Numbers) -> NDArray[np.uint32]:
        return np.frombuffer(self._groups, dtype=np.uint32)[rows]

    def _strata(
        self, rows: Numbers, name_of: Callable[[str | None, tuple[str, ...]], str]
    ) -> tuple[NDArray[np.int64], list[str]]:
        """The stratum of each row as a number, and the names of the numbers."""
        named = [name_of(principle, tags) for principle, tags in self._numbers]
        names = sorted(set(named))
        numbers = np.array([names.index(name) for name in named], dtype=np.int64)
        return (numbers[self._group_of(rows)] if len(rows) else np.zeros(0, dtype=np.int64)), names

    @staticmethod
    def _sizes(strata: NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
        return dict(zip(names, np.bincount(strata, minlength=len(names)).tolist(), strict=True))


def import_prompts(
    file: Path, out: Path, *, tags: Iterable[str] = (), limit: int | None = None, test_fraction: float, seed: int
) -> dict[str, int]:
    """Read a file, drop duplicates, take ``limit`` with the mix of all, split (with a fraction of 0 nothing gets one) and write.

    Returns how many were read, duplicates, and written.
    """
    check_output(out)
    with PromptSpool(out) as spool:
        spool.extend(read_prompts(file, tags=tuple(tags)))
        rows = spool.unique()
        n_duplicates = len(spool) - len(rows)
        if limit is not None and limit < len(rows):
            rows = spool.take(rows, limit, seed=seed)
        dealt = spool.split(rows, test_fraction=test_fraction, seed=seed) if test_fraction else None
        written = write_prompts(out, with_splits(spool.read(rows), dealt))
        return {"read": len(spool), "duplicates": n_duplicates, "written": written}


def prepare_prompts(
    prompts: Iterable[Prompt],
    out: Path,
    *,
    train: int | None,
    test: int | None,
    test_fraction: float,
    seed: int,
    shorter: Callable[[], int | None] = lambda: None,
    sort: Callable[[Sequence[Prompt]], Iterable[Prompt]] = lambda prompts: prompts,
    progress: Callable[[Sequence[Numbers]], Iterable[Numbers]] = lambda batches: batches,
) -> dict[str, Any]:
    """The prompts of a run: without duplicates and those of ``shorter()`` characters or more, each with the principle that
    ``sort`` gives it (in batches of 256), split, and of each split and kind at most ``train`` or ``test``, in JSONL.

    ``progress`` wraps the batches. Of several processes each reads all prompts and claims batches to sort; the main one splits
    and writes. Returns read, duplicates, too_long, and the counts of what was written by split and kind and by principle.
    """
    crew = team()
    # Only the main process writes beside the run; what another one reads of the prompts stays on its own machine.
    place = out if crew.is_main else Path(tempfile.gettempdir()) / out.name
    with PromptSpool(place) as raw, PromptSpool(place) as spool:
        raw.extend(prompts)
        unique = raw.unique()
        most = shorter()  # called after the files were read: an unusable prompt is reported before a model loads
        fitting = unique if most is None else raw.shorter(unique, most)
        if len(set(crew.gather([content_id(raw.digest(), len(fitting))]))) > 1:
            raise InputError("the prompt files are not the same for all processes; put them where every machine reads them")
        batches = [fitting[start : start + BATCH] for start in range(0, len(fitting), BATCH)]

        def principles(number: int) -> str:
            return json.dumps([prompt.principle for prompt in sort(list(raw.read(batches[number])))])

        def sorted_batches() -> Generator[Iterable[Prompt], None, None]:
            if crew.size == 1:
                yield from (sort(list(raw.read(batch))) for batch in batches)
                return
            for batch, sorted_by in zip(batches, crew.in_order(len(batches), principles), strict=True):
                pairs = zip(raw.read(batch), json.loads(sorted_by), strict=True)
                yield [prompt.model_copy(update={"principle": principle}) for prompt, principle in pairs]

        def write() -> dict[str, Any]:
            with contextlib.closing(sorted_batches()) as with_principles:
                for _, batch in zip(progress(batches), with_principles, strict=True):
                    spool.extend(batch)
            counts, by_principle = split_and_write(spool, out, train=train, test=test, test_fraction=test_fraction, seed=seed)
            return {"read": len(raw), "duplicates": len(raw) - len(unique), "too_long": len(unique) - len(fitting),
                    "counts": counts, "principles": by_principle}  # fmt: skip

        if not crew.is_main:
            deque(crew.in_order(len(batches), principles), maxlen=0)
        return crew.on_main(write)


@dataclass(frozen=True)
class TakenPrompts:
    """The prompts that a run takes: ``parts`` by split and kind, and how many of them all the stage sorts by principle."""

    spool: PromptSpool
    parts: dict[tuple[Split, str], Numbers]
    unsorted: int

    @property
    def counts(self) -> dict[str, int]:
        """How many by `split kind`, those of none included."""
        return {f"{split} {kind}": len(rows) for (split, kind), rows in self.parts.items()}

    def read(self, split: Split, kind: str, most: int | None = None) -> list[Prompt]:
        """The first ``most`` prompts of a split and kind, or all, in the order of the run."""
        rows = self.parts[split, kind][:most]
        return list(with_splits(self.spool.read(rows), np.full(len(rows), SPLITS.index(split), dtype=np.int8)))


@contextlib.contextmanager
def taken_prompts(
    prompts: Iterable[Prompt], *, train: int | None, test: int | None, test_fraction: float, seed: int, shorter: int | None = None
) -> Iterator[TakenPrompts]:
    """What :func:`prepare_prompts` would take, with nothing written and no model asked: prompts keep the principle of their file,
    so that a run which sorts them may take others of a split and kind, but equally many to within one of each."""
    with PromptSpool(Path(tempfile.gettempdir()) / "prompts") as spool:
        spool.extend(prompts)
        rows = spool.unique() if shorter is None else spool.shorter(spool.unique(), shorter)
        parts = spool.deal(rows, train=train, test=test, test_fraction=test_fraction, seed=seed)
        yield TakenPrompts(spool, parts, spool.without_principle(rows))


def split_and_write(
    spool: PromptSpool, out: Path, *, train: int | None, test: int | None, test_fraction: float, seed: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Split the sorted prompts and write the chosen; how many by split and kind, and by principle."""
    parts = spool.deal(spool.everything(), train=train, test=test, test_fraction=test_fraction, seed=seed)
    chosen = np.concatenate(list(parts.values()))
    dealt = np.concatenate([np.full(len(rows), SPLITS.index(split), dtype=np.int8) for (split, _), rows in parts.items()])
    counts: Counter[str] = Counter()
    by_principle: Counter[str] = Counter()

    def counted(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
        for prompt in prompts:
            counts.update(f"{prompt.split} {kind}" for kind in KINDS if is_kind(prompt.tags, kind))
            by_principle[prompt.principle or "none of these"] += 1
            yield prompt

    write_jsonl(out, counted(with_splits(spool.read(chosen), dealt)))
    return dict(counts), dict(by_principle)


def with_splits(prompts: Iterable[Prompt], dealt: NDArray[np.int8] | None) -> Iterator[Prompt]:
    """The prompts with their splits, or as they are where nothing was dealt."""
    if dealt is None:
        yield from prompts
        return
    for prompt, number in zip(prompts, dealt, strict=True):
        yield prompt.model_copy(update={"split": SPLITS[number]})
