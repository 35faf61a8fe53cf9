"""What the package's source says about itself: modules, and what each imports and when."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "speechssm"

When = Literal["import", "call", "types"]
"""At import time; when a function runs; or only for the type checker."""


@dataclass(frozen=True)
class Import:
    """``module`` (dotted, absolute) imports ``target`` (dotted, absolute) at ``line``."""

    module: str
    target: str
    when: When
    line: int

    @property
    def distribution(self) -> str:
        """First name of the target."""
        return self.target.split(".")[0]

    def __str__(self) -> str:
        return f"{self.module} line {self.line} imports {self.target}"


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module, through the links to the top-level folders."""
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for name in sorted(files):
            path = Path(folder) / name
            if path.suffix == ".py":
                parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """Everything ``module`` imports from outside the standard library."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node, when in _walk(ast.parse(path.read_text(encoding="utf-8")), "import"):
        for target in _targets(node, package):
            if target.split(".")[0] not in sys.stdlib_module_names:
                yield Import(module, target, when, node.lineno)


def _walk(tree: ast.AST, when: When) -> Iterator[tuple[ast.stmt, When]]:
    for node in ast.iter_child_nodes(tree):
        inside = when
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = "call"
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inside = "types"
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, when
        yield from _walk(node, inside)


def _targets(node: ast.stmt, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    base = package[: len(package) - node.level + 1] if node.level else []
    stem = ".".join([*base, *([node.module] if node.module else [])])
    # "from . import name" and "from speechssm import name" may name modules.
    return (
        [f"{stem}.{alias.name}" for alias in node.names] if stem == "speechssm" or not node.module else [stem]
    )


def all_imports() -> list[Import]:
    """Every import of every module of the package."""
    return [found for module, path in modules() for found in imports_of(module, path)]
