"""The command that opens the studio. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, show
from charter.errors import InputError

app = typer.Typer()


@app.command()
def studio(
    folder: Annotated[Path, typer.Argument(help="The folder that has the runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any port that is free.")] = 8766,
    as_json: Json = False,
) -> None:
    """Watch runs, compare them and talk to their models in the browser; prints the owner's link; Ctrl-C ends."""
    try:
        from charter.studio.serve import serve_studio
    except ModuleNotFoundError as error:
        raise InputError(f"the studio needs {error.name}; pip install 'charter-align[web]'") from None

    def say(link: str) -> None:
        show({"link": link, "folder": str(folder)}, as_json, f"runs of {folder}; your link, good for a day: {link}")
        sys.stdout.flush()

    serve_studio(folder, port=port, say=say)
