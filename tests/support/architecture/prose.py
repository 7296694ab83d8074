"""Finds docstrings that break the rules of the project's prose."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_OPENINGS = frozenset(["What", "Where", "Which", "Who", "How", "Whether", "That", "Those", "Of", "From"])
"""First words of a docstring that names no subject and no action."""

_ARGUMENT_OF = re.compile(r"^\s+[\w*, ]+: (?:(?:Of|What|Where|Which|Who|How|Whether|That|Those)\b)")
"""A line of a section that describes a parameter without a noun, such as `config: Of the encoder.`"""

_SECTIONS = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises:")


def findings(file: Path) -> Iterator[str]:
    """Yields each fault of a Python file as "line: fault"."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node, name in _documented(tree, file.stem):
        text = node.value.value.strip()
        for fault in docstring_faults(text, name):
            yield f"{node.lineno}: {fault}"


def docstring_faults(text: str, name: str) -> Iterator[str]:
    """Yields what is wrong with one docstring.

    Args:
        text: Docstring.
        name: Name of the documented object.
    """
    first = re.match(r"\w+", text)
    if first and first.group() in _OPENINGS:
        yield f"begins with {first.group()!r}"
    if _repeats(text, name):
        yield f"only repeats the name {name!r}"
    section = ""
    for line in text.splitlines():
        section = line.strip() if line.strip() in _SECTIONS else section
        if section in ("Args:", "Attributes:") and _ARGUMENT_OF.match(line):
            yield f"describes a parameter without a noun: {line.strip()!r}"


def _repeats(text: str, name: str) -> bool:
    words = [_stem(word) for word in re.findall(r"[A-Za-z]+", text)]
    parts = {_stem(part) for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
    return len(words) <= 3 and bool(set(words) & parts) and set(words) <= parts | {"the", "a", "an", "return"}


def _stem(word: str) -> str:
    return re.sub(r"(ies|es|s)$", "", word.lower())


def _documented(tree: ast.Module, stem: str) -> Iterator[tuple[ast.Expr, str]]:
    """Yields docstrings of the module, its classes and functions, and the strings below constants, with the name."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        owner = getattr(node, "name", stem)
        for before, line in zip([None, *body], body, strict=False):
            if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)):
                continue
            if not isinstance(line.value.value, str):
                continue
            if before is None:
                yield line, owner
            elif isinstance(before, ast.Assign | ast.AnnAssign):
                target = before.targets[0] if isinstance(before, ast.Assign) else before.target
                yield line, ast.unparse(target)
