"""What all commands share: the options they take, the API client those make, and how an answer or a refusal is printed.

Exit codes: 0 done; 1 failed; 2 called wrongly; 3 not found; 4 refused or not allowed; 5 the server does not answer.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loopwright_cli.client import TIMEOUT_SECONDS, Api, ApiFailed
from loopwright_cli.stack import FIRST_PORT
from loopwright_cli.telling import plain

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

FAILED, NOT_FOUND, REFUSED, UNREACHABLE = 1, 3, 4, 5


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


As = Annotated[Output, typer.Option("--output", "-o", help="table for people, json for programs.")]
Data = Annotated[Path, typer.Option(envvar="LOOPWRIGHT_DATA", help="The data folder: state, secrets and logs.")]
Url = Annotated[str, typer.Option(envvar="LOOPWRIGHT_URL", help="The gateway's address.")]
Token = Annotated[
    str, typer.Option(envvar="LOOPWRIGHT_TOKEN", help="A token of the gateway; by default the operator's, from the data folder.")
]
Project = Annotated[str, typer.Option("--project", "-p", envvar="LOOPWRIGHT_PROJECT", help="Only this project.")]
DATA = Path("data")
URL = f"http://127.0.0.1:{FIRST_PORT}"


def api(url: str, token: str, data: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> Api:
    """The gateway's API, with the token given or the operator's."""
    file = data / "secrets" / "operator_token"
    if not token and file.exists():
        token = file.read_text().strip()
    return Api(url, token, timeout_seconds)


def fail(error: ApiFailed) -> typer.Exit:
    """Says what went wrong, and the exit code for it."""
    errors.print(f"[red]✗[/] {plain(error.detail)}")
    for item in error.errors[:20]:
        errors.print(f"  {plain(item.get('pointer', ''))}: {plain(item.get('detail', ''))}")
    codes = {0: UNREACHABLE, 404: NOT_FOUND, 401: REFUSED, 403: REFUSED, 409: REFUSED, 429: REFUSED, 503: UNREACHABLE, 422: 2}
    return typer.Exit(codes.get(error.status, FAILED))


def show(value: Any, output: Output, columns: dict[str, str] | None = None) -> None:
    """Prints a value as JSON, or a list of objects as a table of ``columns`` (title -> dotted path)."""
    if output is Output.JSON or columns is None:
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in columns:
        table.add_column(title, overflow="fold")
    for item in value:
        table.add_row(*(plain(_at(item, path)) for path in columns.values()))
    console.print(table)


def _at(item: Any, path: str) -> str:
    for part in path.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    if isinstance(item, list):
        return ", ".join(map(str, item))
    return "" if item is None else str(item)
