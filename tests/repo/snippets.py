"""Code blocks of the documentation, run as a reader would, and their printed output compared.

``python`` blocks of one page run in order in one namespace; a ``text`` block right after one is what it
prints. In a ``console`` block lines that start with ``$`` are commands, those below are their output; an
output that starts with ``speechssm: `` is an error and the command must fail. Blocks in any other language
are not run, nor are sketches (``python sketch``), which leave something to the reader.

Outputs are compared loosely: a number with a unit of time or bytes, a real-time factor, and a number as
small as 1e-06 may differ;
``...`` stands for anything, on a line of its own for any lines.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
_MEASURED = re.compile(r"\d+(?:\.\d+)?e-\d+|\d+(?:\.\d+)?(?=(?:x real time| (?:s|ms|us|MB|KB)\b))")


@dataclass
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    line: int
    after: str
    """The text of the ``text`` block that follows with nothing but space between; empty when none does."""


@dataclass
class Page:
    """A Markdown file and its blocks."""

    path: Path
    blocks: list[Block] = field(default_factory=list)


def read_page(path: Path) -> Page:
    """Blocks of the Markdown file at ``path``."""
    source = path.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(source))
    page = Page(path)
    for index, match in enumerate(found):
        after = ""
        if index + 1 < len(found) and found[index + 1][1] == "text":
            between = source[match.end() : found[index + 1].start()]
            after = "" if between.strip() else found[index + 1][2]
        line = source.count("\n", 0, match.start()) + 1
        page.blocks.append(Block(match[1], match[2], line, after))
    return page


def pattern(expected: str) -> re.Pattern[str]:
    """What ``expected`` matches."""
    lines = []
    for line in expected.rstrip("\n").split("\n"):
        if line.strip() == "...":
            lines.append(r"(?:[^\n]*\n)*?")
        else:
            parts = (_MEASURED.sub("\0", part) for part in line.rstrip().split("..."))
            escaped = (re.escape(part).replace("\0", r"\d+(?:\.\d+)?(?:e-\d+)?") for part in parts)
            lines.append("[^\\n]*".join(escaped) + r"[ ]*\n")
    return re.compile("".join(lines))


def check(expected: str, printed: str, where: str) -> None:
    """Fail with both texts when ``printed`` is not what the page promises."""
    printed = printed.rstrip("\n") + "\n"
    if not pattern(expected).fullmatch(printed):
        raise AssertionError(f"{where} prints\n{printed}\nbut the page says\n{expected}")


def run_python(block: Block, namespace: dict[str, Any], page: Path) -> None:
    """Run a block in ``namespace``."""
    where = f"{page.name} line {block.line}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, where, "exec"), namespace)
    if block.after:
        check(block.after, printed.getvalue(), where)


def commands(block: Block) -> list[tuple[str, str]]:
    """Each command of a console block with its promised output, which may be empty."""
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, output = found[-1]
            found[-1] = (command, f"{output}{line}\n")
    return found


def run_command(command: str, expected: str, folder: Path, where: str) -> str:
    """Run one command in ``folder`` with this interpreter's programs first on the path; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, env={**os.environ, "PATH": path, "LC_ALL": "C"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    failed = expected.startswith("speechssm: ")
    assert (done.returncode != 0) == failed, f"{where}: {command} exits {done.returncode}:\n{done.stdout}"
    if expected:
        check(expected, done.stdout, f"{where}: {command}")
    return done.stdout
