"""INVARIANTS.md and the tests agree: every id has its line, every line names tests that carry the id."""

from __future__ import annotations

import ast
import re

import pytest

from tests.repo.source import REPOSITORY

IDS = [*(f"S{n}" for n in range(1, 11)), "A1", "A2", "A3"]
ROW = re.compile(r"^\| ([SA]\d+) \| (.+?) \| (.+?) \| ?(.*?) ?\|$", re.M)
PAGE = (REPOSITORY / "INVARIANTS.md").read_text(encoding="utf-8")
ROWS = {row[0]: row[1:] for row in ROW.findall(PAGE)}


def test_every_invariant_has_one_line() -> None:
    assert [row[0] for row in ROW.findall(PAGE)] == IDS


@pytest.mark.parametrize("name", IDS)
def test_the_tests_of_an_invariant_exist_and_carry_its_id(name: str) -> None:
    _, bound, tests = ROWS[name]
    found = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    if not found:
        assert bound.startswith("not promised yet: "), f"{name} names no test and does not say why"
        return
    assert not bound.startswith("not promised"), f"{name} has tests: state its bound"
    for file, function in found:
        tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
        named = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in named, f"{file} has no {function}, which INVARIANTS.md names for {name}"
        words = f"{function} {ast.get_docstring(named[function]) or ''}".lower()
        assert re.search(rf"(?<![a-z0-9]){name.lower()}(?![0-9])", words), (
            f"{function} does not mention {name}"
        )


def test_no_invariant_is_tested_in_secret() -> None:
    """A test named after an id that the page calls not promised would mean that the page is out of date."""
    unpromised = [name.lower() for name in IDS if ROWS[name][1].startswith("not promised")]
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        for name in unpromised:
            assert f"def test_{name}_" not in path.read_text(encoding="utf-8"), f"{path} tests {name}"
