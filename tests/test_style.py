"""The rules of CONTRIBUTING.md ("Language") that a program can check, over the whole package."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import streamloader as sl

PACKAGE = Path(sl.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
AVOIDED = re.compile(r"\b(told|said|asked|anew|heed\w*|whoever|mend(s|ed|ing)?|meanwhile|begun)\b", re.IGNORECASE)
# Names of columns and fields in existing catalogs.
STORED_NAME = re.compile(
    r"catalog/(sqlite/(schema|reads|writes)\.py: .*(\bkey(?: TEXT NOT NULL UNIQUE)?, told\b|\bbegun( REAL|, beat))"
    r"|mongo/documents\.py: .*\"begun\")"
)
# An entry of Args or Attributes that begins so has no noun of its own: "of the chunk", "that is read", "how many".
NO_NOUN = re.compile(
    r"(of|that|its|it|for|is|are|was|in|by|from|whose|what|which|where|who|how|with|to|at|on|as|than|so|if|when|while|"
    r"because|also|see|about|after|before|until|since|between|among|behind|under|over|called|given|made|read|sent|they|"
    r"them|their|his|her|those|these|this|(the )?same)\b",
    re.IGNORECASE,
)
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Examples?)::?")
ENTRY = re.compile(r" {4}(\*{0,2}\w[\w., `*]*): (.*)")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def entries(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Yield section, name and text of each entry of each docstring."""
    for node in ast.walk(tree):
        section = ""
        for line in (ast.get_docstring(node) or "").splitlines() if isinstance(node, DOCUMENTED) else ():
            if found := SECTION.fullmatch(line.strip()):
                section = found[1]
            elif line and not line.startswith(" "):
                section = ""
            elif entry := ENTRY.fullmatch(line):
                yield section, entry[1], entry[2]


def complaints(check: Callable[[str], Iterable[str]]) -> list[str]:
    """Return what `check` finds in the text of each module."""
    return [f"{path.relative_to(PACKAGE)}: {text}" for path in MODULES for text in check(path.read_text())]


def test_words_are_plain():
    def check(text):
        return [line.strip() for line in text.splitlines() if AVOIDED.search(line)]

    found = [line for line in complaints(check) if not STORED_NAME.search(line)]
    assert found == []


def test_entries_of_docstrings_have_a_noun():
    def check(text):
        found = entries(ast.parse(text))
        return [f"{name}: {text}" for section, name, text in found if section[:1] == "A" and NO_NOUN.match(text)]

    assert complaints(check) == []


def test_raises_says_if():
    def check(text):
        found = entries(ast.parse(text))
        return [f"{name}: {text}" for section, name, text in found if section == "Raises" and text[:3] != "If "]

    assert complaints(check) == []


def test_a_class_name_stands_for_one_class():
    classes = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name.lstrip("_")].append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert {name: places for name, places in classes.items() if len(places) > 1} == {}


def test_no_file_repeats_its_folder():
    repeated = [path for path in MODULES if path.stem.startswith(f"{path.parent.name.removesuffix('s')}_")]
    assert [str(path.relative_to(PACKAGE)) for path in repeated] == []


def test_log_records_hold_no_errors():
    """A handler may keep a record, with it the error, its traceback, and what its frames hold: a connection."""

    def check(text):
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
                errors = {node.name for node in ast.walk(function) if isinstance(node, ast.ExceptHandler)}
                if not isinstance(function, ast.Module):
                    parameters = (*function.args.args, *function.args.kwonlyargs)
                    errors |= {
                        one.arg for one in parameters if one.annotation and _is_error(ast.unparse(one.annotation))
                    }
                yield from (f"{call.lineno}: {name}" for call, name in logged_names(function) if name in errors)

    assert complaints(check) == []


def _is_error(annotation):
    return re.search(r"(Error|Exception)\b", annotation) is not None


def logged_names(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield each log call with the name of each variable that is passed as it is."""
    for call in ast.walk(tree):
        logs = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if (
            logs
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id.lower().lstrip("_") in ("log", "logger")
        ):
            for argument in call.args:
                inner = {
                    id(child)
                    for node in ast.walk(argument)
                    if isinstance(node, (ast.Attribute, ast.Call))
                    for child in ast.walk(node)
                }
                names = [node for node in ast.walk(argument) if isinstance(node, ast.Name) and id(node) not in inner]
                yield from ((call, node.id) for node in names)
