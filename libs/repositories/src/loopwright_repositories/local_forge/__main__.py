"""``python -m loopwright_repositories.local_forge``: settings from the environment, then serve until told to stop."""

from __future__ import annotations

import argparse
import sys

import uvicorn
from pydantic import SecretStr, ValidationError

from loopwright_repositories.local_forge.app import build_app
from loopwright_repositories.local_forge.settings import PREFIX, ForgeSettings, load_tokens


def _help() -> str:
    lines = ["settings, from the environment:"]
    for name, field in ForgeSettings.model_fields.items():
        default = "required without TOKENS_FILE" if name in ("write_token", "merge_token") else field.default
        lines.append(f"  {PREFIX}{name.upper():<22} {default if default is not None else ''}")
    lines.append("\nClone from http://<host>:<port>/git/<repository>.git with any user name and a token as password.")
    return "\n".join(lines)


def _explain(error: ValidationError) -> str:
    faults = []
    for fault in error.errors(include_url=False):
        name = PREFIX + str(fault["loc"][0]).upper() if fault["loc"] else ""
        value = fault.get("input")
        shown = f"={value}" if name and not isinstance(value, SecretStr | dict) and "TOKEN" not in name and "SECRET" not in name else ""
        faults.append(f"{name}{shown}{': ' if name else ''}{fault['msg'].removeprefix('Value error, ')}")
    return "\n".join(faults)


def main() -> int:
    """Runs the forge. 2 when a setting is bad, having said which and what to do."""
    argparse.ArgumentParser(
        prog="python -m loopwright_repositories.local_forge",
        description="A small git forge for one machine: repositories over HTTP, pull requests, checks, comments, merges.",
        epilog=_help(), formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()  # fmt: skip
    try:
        settings = ForgeSettings()
        tokens = load_tokens(settings)
        app = build_app(settings, tokens)
    except ValidationError as error:
        print(_explain(error), file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"{error} (settings are listed by --help)", file=sys.stderr)
        return 2
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", server_header=False, timeout_graceful_shutdown=10)
    return 0


if __name__ == "__main__":
    sys.exit(main())
