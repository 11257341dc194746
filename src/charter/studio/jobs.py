"""Commands of Charter that run as processes beside the studio: tests of prompts, and runs that the owner starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from charter.errors import InputError
from charter.studio.runs import last_line

FAREWELL_S = 5  # for a test that is told to stop at the end of the studio


@dataclass
class Job:
    """One process, its log, whether it survives the studio, and whether it was told to stop."""

    process: subprocess.Popen[bytes]
    log: Path
    stays: bool
    stopped: bool = False

    @property
    def state(self) -> str:
        """In a word: running, done, stopped or failed."""
        code = self.process.poll()
        if code is None:
            return "running"
        return "done" if code == 0 else "stopped" if self.stopped else "failed"

    def stop(self) -> None:
        """Interrupt it, as Ctrl-C in its terminal does."""
        self.stopped = True
        # A process that ignores Ctrl-C, such as a job in the background of a script, passes that on to those it starts.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        self.process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)

    @property
    def words(self) -> str:
        """The last line that the command wrote: of one that failed, the reason."""
        return last_line(self.log)


class Jobs:
    """The processes that this studio started, by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Job] = {}
        self.lock = threading.Lock()

    def start(self, name: str, arguments: list[str], log: Path, *, stays: bool) -> None:
        """Start ``charter`` with these arguments; what it writes goes to ``log``. With ``stays`` it survives the studio.
        InputError where a job of this name is running."""
        with self.lock:
            if self.state(name) == "running":
                raise InputError(f"{name} is running; wait until it ends, or stop it")
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "wb") as file:
                # A session of its own: Ctrl-C in the terminal is for the studio.
                process = subprocess.Popen([sys.executable, "-m", "charter", *arguments], stdin=subprocess.DEVNULL, stdout=file,
                                           stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
            self.by_name[name] = Job(process, log, stays)

    def state(self, name: str) -> str:
        """The state of a job; "" where this studio started none of this name."""
        job = self.by_name.get(name)
        return "" if job is None else job.state

    def stop(self, name: str) -> None:
        """Interrupt a job. InputError where none of this name is running."""
        if self.state(name) != "running":
            raise InputError(f"{name} is not running, or was not started by this studio; stop it where it was started")
        self.by_name[name].stop()

    def close(self) -> None:
        """Stop the jobs that end with the studio."""
        jobs = [job for job in self.by_name.values() if not job.stays and job.state == "running"]
        for job in jobs:
            job.stop()
        for job in jobs:
            try:
                job.process.wait(FAREWELL_S)
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
