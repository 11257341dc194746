"""The command line: one command per stage. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import os
import re
import sys

import typer

from charter.commands import (
    compare,
    constitution,
    evaluate,
    lab,
    models,
    principles,
    prompts,
    reward,
    run,
    scorer,
    studio,
    testbed,
    votes,
)
from charter.errors import GateError, InputError

app = typer.Typer(
    help="Align a language model to a written constitution and prove with numbers whether it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (run, evaluate, compare, votes, principles, models, studio):
    app.add_typer(commands.app)
ROOMS = {"constitution": constitution, "lab": lab, "prompts": prompts, "reward": reward, "scorer": scorer, "testbed": testbed}
for name, room in ROOMS.items():
    app.add_typer(room.app, name=name)


# What the user can mend about a disk or a path; any other system error is a defect and keeps its traceback.
DISK_ERRORS = frozenset({
    errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENOENT, errno.EFBIG, errno.ENOTEMPTY, errno.ELOOP, errno.EIO,
})  # fmt: skip


def main() -> None:
    """Run the command line: exit code 0 done, 1 a gate or check fails, 2 bad input."""
    sys.exit(run_command(sys.argv[1:]))


# What several processes can do together; anything else under a launcher would be done by each of them.
TOGETHER = frozenset({"run", "revise", "sft", "feedback", "reward", "rl", "evaluate", "prompts"})


def run_command(arguments: list[str]) -> int:
    """The exit code of a command line; errors are one line on standard error."""
    from charter.run.team import LostProcess, disband, launched

    try:
        if launched() and arguments[:1] and arguments[0] not in TOGETHER:
            raise InputError(f"charter {arguments[0]} is the work of one process; start it without a launcher")
        code = app(arguments, standalone_mode=False)
        disband()
        return code if isinstance(code, int) else 0
    except (GateError, LostProcess) as error:
        return say_error(error, 1)
    except InputError as error:
        return say_error(error, 2)
    except (KeyboardInterrupt, typer.Abort):
        return say_error("interrupted; the same command resumes from here", 130)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return say_error(f"{error.filename or 'disk'}: {error.strerror}; choose another folder or make room", 2)
    except Exception as error:
        # Usage errors come from click, or from the copy of it inside newer typers: known by what they can do.
        if hasattr(error, "format_message"):
            return say_error(f"{error.format_message()} (charter --help)", 2)
        # safetensors writes weights without Python, so its disk errors are not OSErrors.
        if (system := re.search(r"\(os error (\d+)\)", str(error))) and int(system[1]) in DISK_ERRORS:
            return say_error(f"disk: {os.strerror(int(system[1]))}; choose another folder or make room", 2)
        raise


def say_error(error: object, code: int) -> int:
    from charter.run.team import launched, team

    text = " ".join(str(error).split())
    if launched() and not team().says_first(text):
        return code
    # What a file says reaches the terminal as text: no control characters, no half of a surrogate pair.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    print("charter: " + text, file=sys.stderr)
    return code
