"""Tables of figures, for reading or as Markdown for docs/benchmarks.md."""

import datetime
import os
import sys

from machine import machine

NARROWEST = 8


def add_option(parser):
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown, headed by date, machine, command")


def describe(markdown, *lines):
    """Prints what makes figures comparable: date, machine, command, and further lines of the form `name: text`."""
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    command = os.environ.get("THALWEG_COMMAND") or " ".join(sys.argv)
    lines = [f"date: {today}", f"machine: {machine()}", f"command: {command.strip()}", *lines]
    for line in lines:
        name, text = line.split(": ", 1)
        if markdown:
            print(f"- {name}: `{text}`" if name == "command" else f"- {name}: {text}")
        else:
            print(f"{name + ':':9}{text}")
    sys.stdout.flush()


class Table:
    """Prints its heads at once and each row as it comes. The first column holds names, the others figures."""

    def __init__(self, heads, markdown, first=10, widths=NARROWEST):
        self.markdown = markdown
        self.first = max(first, len(heads[0]))
        self.widths = [max(widths, len(head)) for head in heads[1:]]
        print()
        self.row(*heads)
        if markdown:
            print("|---" * len(heads) + "|", flush=True)

    def row(self, name, *cells):
        cells = [str(cell) for cell in cells]
        if self.markdown:
            print("| " + " | ".join([name, *cells]) + " |", flush=True)
        else:
            figures = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, self.widths))
            print(f"{name:{self.first}}{figures}".rstrip(), flush=True)
