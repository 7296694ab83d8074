"""Prints figures about the structure of the project: `python -m tests.architecture`."""

import argparse
import ast
import io
import tokenize
from pathlib import Path

from tests.support.architecture import prose
from tests.support.architecture.imports import FILES, PACKAGE, ROOT, between_folders, circles, file_imports


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.architecture", description=__doc__)
    parser.add_argument("--faults", metavar="FOLDER", help="list the faults of prose in this folder instead")
    folder = parser.parse_args().faults
    if folder:
        for file in sorted(Path(folder).rglob("*.py")):
            for fault in prose.findings(file):
                print(f"{file}:{fault}")
        return
    lines = [file.read_text(encoding="utf-8").count("\n") for file in FILES if file.name != "__init__.py"]
    functions = [
        (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    rooms = [
        PACKAGE,
        PACKAGE / "tasks",
        *(ROOT / name for name in ("conf", "conf/corpus", "launch", "slurm", "docker")),
    ]
    rooms += [ROOT / "tests", ROOT / "tests" / "benchmarks"]
    graph = file_imports()
    figures = {
        "circles of files": len(circles(graph)),
        "circles of folders": len(circles(between_folders(graph))),
        "faults of prose": sum(1 for file in FILES for _ in prose.findings(file)),
        "files": len(lines),
        "lines of the longest file": max(lines),
        "files of 50 to 300 lines": f"{sum(50 <= count <= 300 for count in lines) / len(lines):.0%}",
        "lines of the longest function": max(functions),
        "lines of code": sum(code_lines(file.read_text(encoding="utf-8")) for file in FILES),
        "lines of README.md": (ROOT / "README.md").read_text(encoding="utf-8").count("\n"),
        "folders without README.md": ", ".join(
            str(f.relative_to(ROOT)) for f in rooms if not (f / "README.md").exists()
        )
        or "none",
    }
    for name, figure in figures.items():
        print(f"{name:30} {figure}")


def code_lines(source: str) -> int:
    """Counts the lines that hold code: blank lines, comments and docstrings do not count."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


if __name__ == "__main__":
    main()
