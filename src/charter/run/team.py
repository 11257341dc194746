"""The processes of one run, as `torchrun` or `accelerate launch` starts them, and what they do together.

Every process runs the same program on the same data. The main one alone reads what a run left on the disk, writes files and
prints; what depends on the disk it tells the others (``on_main``). Work is shared in two ways: *dealt* where a step of training
needs all of it (``share``, then ``sum_``), *claimed* where the parts are independent and may take unequal time (``in_order``).
Without a launcher there is one process, which does everything itself and exchanges nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from charter.errors import GateError, InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=14)  # one process may wait for a server while the others wait for it; a dead one is noticed at once
PIECE = 2**20  # characters of a text that are stored under one key


class LostProcess(Exception):
    """Another process of the run is gone; what this one would do next makes no sense without it."""

    def __init__(self) -> None:
        super().__init__("another process of this run ended; the same command goes on from here")


class Team:
    """One process, alone. rank: its number, size: how many there are."""

    rank, size = 0, 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def words(self) -> str:
        """How many processes there are and how they talk, for the first line of a run."""
        return "1 process"

    def on_main(self, act: Callable[[], T]) -> T:
        """What ``act`` gives on the main process, on all of them; nobody goes on before. Where it fails there, all fail."""
        return act()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the processes, in place; the same bits on all of them."""
        return tensor

    def add_up(self, *values: float) -> list[float]:
        """Sums of plain numbers over the processes."""
        return list(values)

    def gather(self, part: Sequence[T]) -> list[T]:
        """The parts of all processes one after another, by rank."""
        return list(part)

    def share(self, parts: Sequence[T], costs: Sequence[float]) -> list[T]:
        """The parts that fall to this process."""
        return [parts[i] for i in self.deal(costs)[self.rank]]

    def deal(self, costs: Sequence[float]) -> list[list[int]]:
        """Which parts each process gets: the dearest first, each to whoever has least so far."""
        loads = [0.0] * self.size
        hands: list[list[int]] = [[] for _ in loads]
        for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            rank = min(range(self.size), key=lambda rank: (loads[rank], rank))
            hands[rank].append(i)
            loads[rank] += costs[i]
        return [sorted(hand) for hand in hands]

    def in_order(self, n: int, make: Callable[[int], str]) -> Iterator[str]:
        """``make(0)`` … ``make(n - 1)`` in order on the main process, whoever made them: each process claims the next number
        until none is left, so a slow one takes fewer. Elsewhere nothing is yielded. ``make`` runs as if its process were
        alone. An error of any of them is raised on the main process."""
        yield from map(make, range(n))

    def says_first(self, text: str) -> bool:
        """Whether this process is the first to say ``text``: an error that all meet is printed once."""
        return bool(text)

    def close(self) -> None:
        """Part in order."""


class Launched(Team):
    """One of several processes."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from accelerate import PartialState

        on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        with plainly():
            self.state = PartialState(cpu=on_cpu, timeout=PATIENCE)
        self.rank, self.size = self.state.process_index, self.state.num_processes
        # Objects and tensors of the CPU do not travel by NCCL.
        self.on_cpu = dist.new_group(backend="gloo", timeout=PATIENCE) if self.state.backend != "gloo" else None
        self.tasks = 0
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        connect = dist.TCPStore  # type: ignore[attr-defined]
        store = connect(host, 0, None, True, PATIENCE, False) if self.is_main else None
        port = [store.port if store else 0]
        dist.broadcast_object_list(port, src=0, group=self.on_cpu)
        self.store = store or connect(host, port[0], None, False, PATIENCE)

    @property
    def words(self) -> str:
        return f"{self.size} processes ({self.state.backend}, {self.state.device.type})"

    def on_main(self, act: Callable[[], T]) -> T:
        if not self.is_main:
            value, error = self._broadcast((None, None))
            if error is not None:
                raise error
            return value  # type: ignore[no-any-return]
        try:
            with alone():
                found = act()
        except BaseException as error:
            with contextlib.suppress(LostProcess):
                self._broadcast((None, as_told(error)))
            raise
        self._broadcast((found, None))
        return found

    def _broadcast(self, message: tuple[Any, Any]) -> tuple[Any, Any]:
        """What the main process has in ``message``, on all."""
        import torch.distributed as dist

        held = [message]
        with together():
            dist.broadcast_object_list(held, src=0, group=self.on_cpu)
        return held[0]

    def sum_(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        with together():
            dist.all_reduce(tensor, group=self.on_cpu if tensor.device.type == "cpu" else None)
        return tensor

    def add_up(self, *values: float) -> list[float]:
        import torch

        found: list[float] = self.sum_(torch.tensor(values, dtype=torch.float64)).tolist()
        return found

    def gather(self, part: Sequence[T]) -> list[T]:
        import torch.distributed as dist

        parts: list[Any] = [None] * self.size
        with together():
            dist.all_gather_object(parts, list(part), group=self.on_cpu)
        return [one for of_rank in parts for one in of_rank]

    # -- claimed work --------------------------------------------------------------------------------------------------

    def in_order(self, n: int, make: Callable[[int], str]) -> Iterator[str]:
        self.tasks += 1
        work = f"work/{self.tasks}"
        if not self.is_main:
            while (mine := self._claim(work)) < n:
                try:
                    with alone():
                        said = {"text": make(mine)}
                except (InputError, GateError) as error:
                    said = {"input" if isinstance(error, InputError) else "gate": str(error)}
                self._post(f"{work}/{mine}", json.dumps(said))
            return
        own: dict[int, str] = {}
        left = True
        try:
            for number in range(n):
                while left and number not in own and not self._posted(f"{work}/{number}"):
                    mine = self._claim(work)
                    left = mine < n
                    if left:
                        with alone():
                            own[mine] = make(mine)
                yield own.pop(number) if number in own else read(self._fetch(f"{work}/{number}"))
        finally:
            with together():
                self.store.add(work, n)  # after an error nobody needs to begin another part

    def _claim(self, key: str) -> int:
        with together():
            return int(self.store.add(key, 1)) - 1

    def _post(self, key: str, text: str) -> None:
        pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
        with together():
            for number, piece in enumerate(pieces):
                self.store.set(f"{key}/{number}", piece)
            self.store.set(key, str(len(pieces)))

    def _posted(self, key: str) -> bool:
        with together():
            return bool(self.store.check([key]))

    def _fetch(self, key: str) -> str:
        """Wait for an ASCII text that another process posts, and take it away."""
        with together():
            n = int(self.store.get(key))
            data = b"".join(self.store.get(f"{key}/{number}") for number in range(n))
            for name in (key, *(f"{key}/{number}" for number in range(n))):
                self.store.delete_key(name)
        return data.decode("ascii")

    def says_first(self, text: str) -> bool:
        try:
            return self._claim(f"said/{text}") == 0
        except LostProcess as error:  # whoever keeps the counters is gone and has said what it had to say
            return text == str(error)

    def close(self) -> None:
        """Wait for the others, so that the main process, who keeps the counters, is the last to go."""
        with contextlib.suppress(LostProcess):
            self.add_up(1.0)
        self.state.destroy_process_group()


def read(said: str) -> str:
    """The text that another process made, or the error it met."""
    found: dict[str, str] = json.loads(said)
    if "input" in found:
        raise InputError(found["input"])
    if "gate" in found:
        raise GateError(found["gate"])
    return found["text"]


def as_told(error: BaseException) -> BaseException:
    """An error of the main process as the others raise it: one that is said in words as it is, any other as a lost process."""
    if isinstance(error, (InputError, GateError)):
        return InputError(str(error)) if isinstance(error, InputError) else GateError(str(error))
    return error if type(error) in (OSError, FileNotFoundError, PermissionError) else LostProcess()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is exchanged with other processes fails in many words where one of them is gone; here in one."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        raise LostProcess() from error


_teams: list[Team] = []  # the last one is at work


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE") or 1) > 1


if launched():  # before torch is there: what it says of a lost connection is a page, and LostProcess is a line
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def asked_of_launcher() -> str | None:
    """How `accelerate launch` was told to divide what is trained (``Recipe.parallel``); None where it was told nothing."""
    for way, name in (("fsdp", "ACCELERATE_USE_FSDP"), ("deepspeed", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(name, "").lower() in ("1", "true", "yes"):
            return way
    return None


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Inside, Accelerate opens connections of torch's own: they serve DeepSpeed too, where it is used."""
    held = os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    try:
        yield
    finally:
        if held is not None:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = held


def team() -> Team:
    """The processes that this one works with now; they meet at the first call."""
    if not _teams:
        _teams.append(Launched() if launched() else Team())
    return _teams[-1]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is a team of its own: what it does is its part of a work that is shared further out."""
    _teams.append(Team())
    try:
        yield
    finally:
        _teams.pop()


def disband() -> None:
    """At the end of the program."""
    while _teams:
        _teams.pop().close()
