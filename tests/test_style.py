"""The rules of CONTRIBUTING.md ("Language") that a program can check, over the whole package."""

from __future__ import annotations

import ast
import functools
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
LOG_CALL = re.compile(r"_?log(ger)?\.(debug|info|warning|error|exception|critical|log)\(", re.IGNORECASE)
ERROR = re.compile(r"(Error|Exception)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def parse(path: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Return all docstrings of a module, and (name, line) of its classes. It is parsed once for all tests."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCUMENTED)]
    classes = [(node.name, node.lineno) for node in nodes if isinstance(node, ast.ClassDef)]
    return [ast.get_docstring(node) or "" for node in nodes], classes


def entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield section, name and text of each entry of each docstring."""
    docstrings, _ = parse(path)
    for docstring in docstrings:
        section = ""
        for line in docstring.splitlines():
            if found := SECTION.fullmatch(line.strip()):
                section = found[1]
            elif line and not line.startswith(" "):
                section = ""
            elif entry := ENTRY.fullmatch(line):
                yield section, entry[1], entry[2]


def complaints(check: Callable[[Path], Iterable[str]]) -> list[str]:
    """Return what `check` finds in each module."""
    return [f"{path.relative_to(PACKAGE)}: {text}" for path in MODULES for text in check(path)]


def test_words_are_plain():
    def check(path):
        return [line.strip() for line in path.read_text().splitlines() if AVOIDED.search(line)]

    found = [line for line in complaints(check) if not STORED_NAME.search(line)]
    assert found == []


def test_entries_of_docstrings_have_a_noun():
    def check(path):
        found = entries(path)
        return [f"{name}: {text}" for section, name, text in found if section[:1] == "A" and NO_NOUN.match(text)]

    assert complaints(check) == []


def test_raises_says_if():
    def check(path):
        found = entries(path)
        return [f"{name}: {text}" for section, name, text in found if section == "Raises" and text[:3] != "If "]

    assert complaints(check) == []


def test_a_class_name_stands_for_one_class():
    classes = defaultdict(list)
    for path in MODULES:
        for name, line in parse(path)[1]:
            classes[name.lstrip("_")].append(f"{path.relative_to(PACKAGE)}:{line}")
    twice = {name for name, places in classes.items() if len(places) > 1}
    assert twice == {"StreamDataset"}  # that of compat, because programs import it by this name


def test_no_file_repeats_its_folder():
    repeated = [path for path in MODULES if path.stem.startswith(f"{path.parent.name.removesuffix('s')}_")]
    assert [str(path.relative_to(PACKAGE)) for path in repeated] == []


def test_log_records_hold_no_errors():
    """A handler may keep a record, with it the error, its traceback, and what its frames hold: a connection."""

    def check(path):
        text = path.read_text()
        if not LOG_CALL.search(text):
            return
        nodes = list(ast.walk(ast.parse(text)))
        errors = {node.name for node in nodes if isinstance(node, ast.ExceptHandler)}
        errors |= {
            node.arg
            for node in nodes
            if isinstance(node, ast.arg) and node.annotation and ERROR.search(ast.unparse(node.annotation))
        }
        for node in nodes:
            if isinstance(node, ast.Call) and LOG_CALL.match(ast.unparse(node.func) + "("):
                passed = {name for argument in node.args for name in bare_names(argument)}
                yield from (f"{node.lineno}: {name}" for name in passed & errors)

    assert complaints(check) == []


def bare_names(node: ast.AST) -> Iterator[str]:
    """Yield the variables of an expression whose values it may return as they are."""
    if isinstance(node, ast.Name):
        yield node.id
    elif not isinstance(node, (ast.Attribute, ast.Call)):
        for child in ast.iter_child_nodes(node):
            yield from bare_names(child)
