"""The processes of one run, as `torchrun` or `accelerate launch` starts them, and how they share work.

Every process runs the same program on the same data. Only the main process reads a run's files, writes files and prints; it tells
the others the results that depend on the disk (``on_main``). Work is shared in two ways: *dealt* where a training step needs all
parts (``share``, then ``sum_``), *claimed* where the parts are independent and may take unequal time (``in_order``). Without a
launcher there is one process, which does everything itself and exchanges nothing.
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

PATIENCE = timedelta(days=14)  # a process may wait for a server while the others wait for it; a dead process is noticed at once
PIECE = 2**20  # characters of a text that are stored under one key


class LostProcess(Exception):
    """Another process of the run ended; this one cannot continue without it."""

    def __init__(self) -> None:
        super().__init__("another process of this run ended; the same command resumes from here")


class Team:
    """One process, alone. rank: its number, size: how many there are."""

    rank, size = 0, 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def words(self) -> str:
        """The number of processes and their connection, for the first line of a run."""
        return "1 process"

    def on_main(self, act: Callable[[], T]) -> T:
        """The result of ``act``, which only the main process runs, on all processes; they wait for it. If it fails, all fail."""
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
        """Which parts each process gets: the most expensive part first, each to the process with the least work so far."""
        loads = [0.0] * self.size
        hands: list[list[int]] = [[] for _ in loads]
        for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            rank = min(range(self.size), key=lambda rank: (loads[rank], rank))
            hands[rank].append(i)
            loads[rank] += costs[i]
        return [sorted(hand) for hand in hands]

    def in_order(self, n: int, make: Callable[[int], str]) -> Iterator[str]:
        """``make(0)`` … ``make(n - 1)`` in order on the main process: each process claims the next number until none is
        left, so a slow process takes fewer. The other processes yield nothing. ``make`` runs as if its process were alone.
        The main process raises an error of any of them."""
        yield from map(make, range(n))

    def says_first(self, text: str) -> bool:
        """Whether this process is the first to print ``text``: an error that all processes meet is printed once."""
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
                result = act()
        except BaseException as error:
            with contextlib.suppress(LostProcess):
                self._broadcast((None, as_told(error)))
            raise
        self._broadcast((result, None))
        return result

    def _broadcast(self, message: tuple[Any, Any]) -> tuple[Any, Any]:
        """The main process's ``message``, on all processes."""
        import torch.distributed as dist

        box = [message]
        with together():
            dist.broadcast_object_list(box, src=0, group=self.on_cpu)
        return box[0]

    def sum_(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        with together():
            dist.all_reduce(tensor, group=self.on_cpu if tensor.device.type == "cpu" else None)
        return tensor

    def add_up(self, *values: float) -> list[float]:
        import torch

        sums: list[float] = self.sum_(torch.tensor(values, dtype=torch.float64)).tolist()
        return sums

    def gather(self, part: Sequence[T]) -> list[T]:
        import torch.distributed as dist

        parts: list[Any] = [None] * self.size
        with together():
            dist.all_gather_object(parts, list(part), group=self.on_cpu)
        return [value for of_rank in parts for value in of_rank]

    # -- claimed work --------------------------------------------------------------------------------------------------

    def in_order(self, n: int, make: Callable[[int], str]) -> Iterator[str]:
        self.tasks += 1
        work = f"work/{self.tasks}"
        if not self.is_main:
            while (mine := self._claim(work)) < n:
                try:
                    with alone():
                        message = {"text": make(mine)}
                except (InputError, GateError) as error:
                    message = {"input" if isinstance(error, InputError) else "gate": str(error)}
                self._post(f"{work}/{mine}", json.dumps(message))
            return
        made: dict[int, str] = {}
        unclaimed = True
        try:
            for number in range(n):
                while unclaimed and number not in made and not self._posted(f"{work}/{number}"):
                    mine = self._claim(work)
                    unclaimed = mine < n
                    if unclaimed:
                        with alone():
                            made[mine] = make(mine)
                yield made.pop(number) if number in made else read(self._fetch(f"{work}/{number}"))
        finally:
            with together():
                self.store.add(work, n)  # after an error no process begins another part

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
            pieces = b"".join(self.store.get(f"{key}/{number}") for number in range(n))
            for name in (key, *(f"{key}/{number}" for number in range(n))):
                self.store.delete_key(name)
        return pieces.decode("ascii")

    def says_first(self, text: str) -> bool:
        try:
            return self._claim(f"printed/{text}") == 0
        except LostProcess as error:  # the process with the counters is gone, and has printed its own error
            return text == str(error)

    def close(self) -> None:
        """Wait for the others: the main process keeps the counters, so it must end last."""
        with contextlib.suppress(LostProcess):
            self.add_up(1.0)
        self.state.destroy_process_group()


def read(posted: str) -> str:
    """The text that another process made, or the error it met."""
    message: dict[str, str] = json.loads(posted)
    if "input" in message:
        raise InputError(message["input"])
    if "gate" in message:
        raise GateError(message["gate"])
    return message["text"]


def as_told(error: BaseException) -> BaseException:
    """An error of the main process as the others raise it: an error for the user as it is, any other as a lost process."""
    if isinstance(error, (InputError, GateError)):
        return InputError(str(error)) if isinstance(error, InputError) else GateError(str(error))
    return error if type(error) in (OSError, FileNotFoundError, PermissionError) else LostProcess()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, the many errors of an exchange with a process that is gone become LostProcess."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        raise LostProcess() from error


_teams: list[Team] = []  # the last one is at work


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE") or 1) > 1


if launched():  # before torch is imported: it prints a page about a lost connection, and LostProcess is one line
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def asked_of_launcher() -> str | None:
    """How `accelerate launch` was told to divide the trained weights (``Recipe.parallel``); None without such a flag."""
    for way, name in (("fsdp", "ACCELERATE_USE_FSDP"), ("deepspeed", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(name, "").lower() in ("1", "true", "yes"):
            return way
    return None


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Inside, Accelerate opens torch's connections, which serve DeepSpeed too."""
    deepspeed = os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    try:
        yield
    finally:
        if deepspeed is not None:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = deepspeed


def team() -> Team:
    """The processes that this one works with now; they meet at the first call."""
    if not _teams:
        _teams.append(Launched() if launched() else Team())
    return _teams[-1]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works alone: it does its part of work that is shared further out."""
    _teams.append(Team())
    try:
        yield
    finally:
        _teams.pop()


def disband() -> None:
    """At the end of the program."""
    while _teams:
        _teams.pop().close()
