"""Imports of framework/: which module imports which, and circles among files and folders."""

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "framework"
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(source: str, file: Path) -> list[tuple[int, str]]:
    """Returns every `framework.*` name that a file imports, lazy imports included, with its line."""
    package = ["framework", *file.relative_to(PACKAGE).parts[:-1]]
    names: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            names += [(node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return [(line, name) for line, name in names if name.split(".")[0] == "framework" and name != "framework"]


def module_of(file: Path) -> str:
    """Returns the dotted name of a file of framework/; a package is named by its folder."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def folder_of(module: str) -> str:
    """Returns the folder that holds a module; each module at the top of framework/ is a room of its own."""
    folder = module.rpartition(".")[0]
    return module if folder == "framework" else folder


def file_imports() -> dict[str, set[str]]:
    """Returns the modules that each module of framework/ imports."""
    modules = {module_of(file) for file in FILES}

    def resolve(name: str) -> Iterator[str]:
        while name not in modules and "." in name:
            name = name.rpartition(".")[0]
        yield name

    graph = {}
    for file in FILES:
        names = [name for _, name in imported_modules(file.read_text(encoding="utf-8"), file)]
        graph[module_of(file)] = {each for name in names for each in resolve(name)} - {"framework", module_of(file)}
    return graph


def between_folders(graph: Mapping[str, set[str]], folder: Callable[[str], str] = folder_of) -> dict[str, set[str]]:
    """Returns the imports between folders, each folder apart from its sub-folders."""
    packages = {module_of(file) for file in FILES if file.name == "__init__.py"}
    folders: dict[str, set[str]] = {}
    for module, imported in graph.items():
        here = module if module in packages else folder(module)
        there = {name if name in packages else folder(name) for name in imported}
        folders.setdefault(here, set()).update(there - {here})
    return folders


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Returns the groups of nodes that reach one another (strongly connected components of more than one node)."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        stack = list(graph[start])
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack.extend(graph.get(node, ()))
        reach[start] = seen
    groups = {tuple(sorted(b for b in graph if b in reach[a] and a in reach[b])) for a in graph if a in reach[a]}
    return [list(group) for group in sorted(groups)]
