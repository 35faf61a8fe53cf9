"""The documentation is true: its code runs and prints what it says, its links lead somewhere, it is complete."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import speechssm
from speechssm import errors
from speechssm.audio import read_audio
from speechssm.bundle import Manifest
from speechssm.cli import app
from speechssm.runtime.model import Model, Speech
from speechssm.runtime.service.service import Service
from speechssm.runtime.service.ticket import Ticket
from speechssm.runtime.session import Session
from tests.repo.snippets import check, commands, pattern, read_page, run_command, run_python
from tests.repo.source import REPOSITORY

PAGES = sorted(
    path
    for folder in (".", "docs", "tests", "examples", "cpp_ext", "perf", "recipes")
    for path in (REPOSITORY / folder).glob("*.md")
)
WITH_CODE = [page for page in PAGES if {"python", "console"} & {b.language for b in read_page(page).blocks}]


def by_name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.fixture
def reader(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the checkout is after ``make demo``: ``examples`` and ``out/tiny``."""
    (tmp_path / "out").mkdir()
    shutil.copytree(tiny_bundle, tmp_path / "out" / "tiny")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_target(command: str, folder: Path) -> str:
    """``make demo`` of this checkout with this interpreter's programs, writing to ``folder``."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    venv = Path(sys.executable).parent.parent
    return f"{command} --no-print-directory -C {REPOSITORY} VENV={venv} OUT={folder}/out -o {venv}/.ready"


def prepare(page: str, folder: Path) -> None:
    """What a page says its reader has, small and seeded: skips when it takes a package that is missing."""
    if page != "lyra-codec.md":
        return
    pytest.importorskip("tflite")
    from tests.doubles.lite_files import save_lyra

    save_lyra(folder / "lyra")
    shutil.copytree(
        REPOSITORY / "examples",
        folder / "speech",
        ignore=lambda _, names: {n for n in names if not n.endswith(".flac")},
    )


@pytest.mark.parametrize("path", WITH_CODE, ids=by_name)
def test_the_code_of_a_page_runs_and_prints_what_it_says(path: Path, reader: Path) -> None:
    prepare(path.name, reader)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in read_page(path).blocks:
        if block.language == "python":
            run_python(block, namespace, path)
        elif block.language == "console":
            for command, expected in commands(block):
                where = f"{path.name} line {block.line}"
                if command == "make demo":
                    venv = str(Path(sys.executable).parent.parent)
                    printed = run_command(make_target(command, reader), "", reader, where)
                    check(expected, printed.replace(f"{reader}/", "").replace(venv, ".venv"), where)
                else:
                    run_command(command, expected, reader, where)


def test_pages_with_code_are_found() -> None:
    assert {"README.md", "docs/api.md", "docs/cli.md", "docs/bundle.md"} <= set(map(by_name, WITH_CODE))


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a 1.5 s\n", "a 22 s\n", True),
        ("a 1.5 s\n", "b 1.5 s\n", False),
        ("3 graphs, 1.3 MB\n", "4 graphs, 1.3 MB\n", False),
        ("0.10x real time, seed 0\n", "3x real time, seed 0\n", True),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nb\nc\n", False),
        ('{"a": 1, ...}\n', '{"a": 1, "b": 2}\n', True),
        ('{"a": 1, ...}\n', '{"a": 2, "b": 2}\n', False),
        ("a\n", "a\nb\n", False),
    ],
)
def test_outputs_are_compared_loosely_but_compared(expected: str, printed: str, same: bool) -> None:
    assert bool(pattern(expected).fullmatch(printed)) == same


LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(
    r"`((?:src|docs|tests|examples|export|runtime|engines|cpp_ext|perf|recipes|speechssm)/[^`\s*<>]*)`"
)


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if "://" not in target and not target.startswith("#"):
            assert (path.parent / target.split("#")[0]).exists(), f"{by_name(path)} links to {target}"
    for name in NAMED.findall(text):
        file = name.split("::")[0]
        places = (REPOSITORY / file, REPOSITORY / "src" / file)
        assert any(place.exists() for place in places), f"{by_name(path)} names {name}, which does not exist"


def command_options() -> Iterator[tuple[str, str]]:
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        if not command.hidden:
            for parameter in command.params:
                long = [o for o in parameter.opts if o.startswith("--")]
                yield name, long[0] if long else (parameter.metavar or parameter.name.upper()).strip("[]")


def test_every_command_and_option_is_in_the_page() -> None:
    sections = dict(
        re.findall(r"^## speechssm ([\w-]+)\n(.*?)(?=^## |\Z)", text_of("docs/cli.md"), re.M | re.S)
    )
    for name, option in command_options():
        assert name in sections, f"docs/cli.md has no section '## speechssm {name}'"
        if option not in ("--help", "BUNDLE"):
            assert f"`{option}`" in sections[name], (
                f"docs/cli.md does not mention {option} of speechssm {name}"
            )
    for name, section in sections.items():
        known = {option for command, option in command_options() if command == name}
        for option in re.findall(r"`(--[a-z-]+)`", section):
            assert option in known, f"docs/cli.md mentions {option}, which speechssm {name} does not have"


def test_every_key_of_the_json_summary_is_in_the_page(reader: Path) -> None:
    command = "speechssm generate examples/prompt.flac -o x.wav --seconds 1 --ramp --json --bundle out/tiny"
    summary = json.loads(run_command(command, "", reader, "test").splitlines()[-1])
    section = text_of("docs/cli.md")
    assert summary["seconds"] == 1.0
    assert [key for key in summary if f"`{key}`" not in section] == []


def test_every_key_of_the_manifest_is_in_the_page() -> None:
    page = text_of("docs/bundle.md")
    assert [key for key in Manifest.model_fields if f"`{key}`" not in page] == []


def test_every_public_method_and_error_is_in_the_page() -> None:
    page = text_of("docs/api.md")
    assert "speechssm.load(" in page
    assert set(speechssm.__all__) == {"__version__", "load"}
    for owner, names in (
        ("model", ("generate", "generate_many", "open", "restore")),
        ("session", [n for n, v in vars(Session).items() if callable(v) and not n.startswith("_")]),
        ("speech", [n for n, v in vars(Speech).items() if callable(v) and not n.startswith("_")]),
        ("service", [n for n, v in vars(Service).items() if callable(v) and not n.startswith("_")]),
        ("ticket", [n for n, v in vars(Ticket).items() if callable(v) and not n.startswith("_")]),
    ):
        for name in names:
            if name not in ("read_prompt", "freeze"):  # what the model calls
                assert f"{owner}.{name}(" in page, f"docs/api.md does not mention {owner}.{name}()"
    assert all(callable(getattr(Model, name)) for name in ("generate", "generate_many", "open", "restore"))
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.SpeechSSMError):
            assert f"`{name}`" in page, f"docs/api.md does not mention {name}"


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_example_program_runs(reader: Path) -> None:
    printed = run_command(f"{sys.executable} examples/embed.py out/tiny out", "", reader, "examples/embed.py")
    assert "restored session says the same: True" in printed
    assert "fork with another seed says the same: False" in printed


def test_the_prompt_is_what_the_page_says() -> None:
    audio = read_audio(REPOSITORY / "examples" / "prompt.flac")
    assert len(audio) == 160_000
    assert (REPOSITORY / "examples" / "prompt.flac").stat().st_size <= 300_000
