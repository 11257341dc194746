"""The commands of experiments that measure Charter itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, Quiet, Sets, show

app = typer.Typer(help="Experiments that measure Charter itself.", no_args_is_help=True)


@app.callback()
def lab() -> None:
    """Experiments that measure Charter itself."""


@app.command("hacking")
def hacking(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs and results.")] = Path("runs/hacking"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each fault, and of the sound runs by each method.")] = 5,
    methods: Annotated[str, typer.Option(help="Methods, by commas; they take turns over the seeds of a fault.")] = "rloo,ppo",
    faults: Annotated[str, typer.Option(help="Planted faults, by commas; all unless given.")] = "",
    steps: Annotated[int, typer.Option(min=2, help="Steps of each run.")] = 50,
    every: Annotated[int, typer.Option(min=1, help="Steps between two points of the gold curve.")] = 5,
    set_: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on rewards with planted faults, and on sound ones; measure which detectors see it, and when. Resumes."""
    from charter.tasks.hacking_lab import Lab, run_lab
    from charter.testbed.faults import FAULTS

    names = [list(filter(None, text.split(","))) for text in (methods, faults)]
    result = run_lab(Lab(out, seeds, names[0], names[1] or list(FAULTS), steps, every, changes=tuple(set_ or ())),
                     lambda line: None if quiet or as_json else typer.echo(line))  # fmt: skip
    show(result, as_json,
         f"gold turned in {result['turned']} of {result['n_faulty']} runs with a fault; the detector of the fault raised its "
         f"alarm in {result['caught']}; {result['false_alarms']} alarms at the end of {result['n_sound']} sound runs",
         f"table: {out / 'lab.md'}; picture: {out / 'lab.png'}")  # fmt: skip
