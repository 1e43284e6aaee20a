"""Writes docs/command_line.md from the help of the commands; `--check` only compares."""

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("command_line.md")
BIN = Path(sys.executable).parent
COMMANDS = (
    "multichat",
    "multichat serve",
    "multichat connect",
    "multichat send",
    "multichat who",
    "multichat ctl",
    "multichat history",
    "multichat journal",
    "multichat account",
    "multichat config",
    "multi_chat_tcp_server",
    "multi_chat_tcp_client",
)


def make() -> str:
    """Return the whole page."""
    introduction = (
        "The output of each command with `--help`; "
        "this page is made from that by `nox -s docs -- --write`."
    )
    sections = [f"# Command line\n\n{introduction}\n"]
    environment = {**os.environ, "COLUMNS": "80", "LANG": "C.UTF-8"}
    for command in COMMANDS:
        name, *rest = command.split()
        argv = [str(BIN / name), *rest, "--help"]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)  # noqa: S603
        text = "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines())
        sections.append(f"## `{command}`\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    if "--check" in sys.argv:
        if PAGE.read_text("utf-8") != make():
            sys.exit("docs/command_line.md is not what --help says: nox -s docs -- --write")
    else:
        PAGE.write_text(make(), "utf-8")
