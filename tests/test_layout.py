"""The tree explains itself: doors list their modules, imports respect doors, files and folders stay small."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/preftune"
PACKAGES = sorted(file.parent for file in SOURCE.rglob("__init__.py") if file.parent != SOURCE)
MODULES = {
    ".".join(("preftune", *file.relative_to(SOURCE).with_suffix("").parts)): file for file in SOURCE.rglob("*.py")
}

MOST_LINES, MOST_FUNCTION_LINES, MOST_FILES = 400, 60, 16


def name_of(package: Path) -> str:
    return ".".join(("preftune", *package.relative_to(SOURCE).parts))


def parts(package: Path) -> list[str]:
    modules = [file.stem for file in package.glob("*.py") if file.stem != "__init__"]
    return sorted(modules + [folder.name for folder in package.iterdir() if (folder / "__init__.py").exists()])


def exported(init: Path) -> list[str]:
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def imported(file: Path) -> Iterator[str]:
    """Modules of preftune that a file imports, for type checking too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("preftune"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES or f"{whole}.__init__" in MODULES else str(node.module)


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_the_door_of_a_package_lists_its_modules(package: Path) -> None:
    doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = re.findall(r"^ *(\w+) {2,}\S", doc, re.M)
    assert sorted(listed) == parts(package), "list every module of the package in its docstring, with a phrase"
    assert doc.split("\n")[0].endswith("."), "the first line is a sentence"


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_what_a_package_exports_is_there(package: Path) -> None:
    module = importlib.import_module(name_of(package))
    for name in exported(package / "__init__.py"):
        assert name in parts(package) or getattr(module, name) is not None


def test_packages_import_only_what_others_export() -> None:
    wrong = []
    for importer, file in MODULES.items():
        for module in imported(file):
            names = module.split(".")
            for depth in range(2, len(names)):
                package = ".".join(names[:depth])
                inside = importer == f"{package}.__init__" or importer.startswith(f"{package}.")
                if not inside and names[depth] not in exported(SOURCE.joinpath(*names[1:depth]) / "__init__.py"):
                    wrong.append(f"{importer} imports {module}, but {package}.__all__ lacks {names[depth]!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", sorted({file.parent for file in MODULES.values()}), ids=str)
def test_folders_stay_small(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= MOST_FILES


@pytest.mark.parametrize("root", ["src", "tests", "benchmarks", "examples"])
def test_files_and_functions_stay_small(root: str) -> None:
    large = []
    for file in (ROOT / root).rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES:
            large.append(f"{file.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if (lines := (node.end_lineno or first) - first + 1) > MOST_FUNCTION_LINES:
                    large.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not large, "\n".join(large)


def test_the_map_names_what_exists() -> None:
    """docs/architecture.md: every package has a row, and every path and dotted name in it exists."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_.]+)`", row.split("|")[1])}
    top = {folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").exists()}
    assert top <= {name.split(".")[0] for name in named}
    for name in named:
        assert importlib.util.find_spec(f"preftune.{name}") is not None, name
    for row in rows:
        if importlib.util.find_spec(f"preftune.{row.split('`')[1]}") is not None and row.count("|") == 4:
            check_row(row)
    for path in re.findall(r"`((?:\w+/)+\w+\.py|tests/[\w/]+)`", re.sub(r"^\|.*$", "", text, flags=re.M)):
        assert (SOURCE / path).exists() or (ROOT / path).exists(), path
    for path in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for dotted in re.findall(r"`((?:data|training|evaluation|report|logps)\.[\w.]+)`", text):
        module, _, attribute = f"preftune.{dotted}".rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, attribute) or importlib.util.find_spec(f"preftune.{dotted}") is not None, dotted


def check_row(row: str) -> None:
    """The files that a package's row names are in that package, or in the one that it names first."""
    packages = [SOURCE.joinpath(*name.split(".")) for name in re.findall(r"`([a-z_.]+)`", row.split("|")[1])]
    for file in re.findall(r"`([\w/]+\.py)`", row.split("|")[3]):
        places = [package / file for package in packages] + [package.parent / file for package in packages]
        inside = [match for package in packages for match in package.rglob(file)]
        assert inside or any(place.exists() for place in places), f"{file} in {row}"


OUTSIDE = {"datasets", "model", "config", "log", "pairs", "endpoint", "score"}
"""First words of dotted names that are of other libraries, files or variables."""


def test_dotted_names_in_docstrings_exist() -> None:
    """`formats.FORMATS` in backticks: a module by the end of its path, or a name in one."""
    ends: dict[str, list[Path]] = {}
    for module, file in MODULES.items():
        names = module.removesuffix(".__init__").split(".")
        for start in range(len(names)):
            ends.setdefault(".".join(names[start:]), []).append(file)
    words = {word for end in ends for word in end.split(".")}
    wrong = []
    for file in MODULES.values():
        for name in re.findall(
            r"`(?:preftune\.)?([a-z_]+(?:\.[A-Za-z_]+)+)(?:\(\))?`", file.read_text(encoding="utf-8")
        ):
            module, _, attribute = name.rpartition(".")
            places = ends.get(module, [])
            found = name in ends or any(re.search(rf"\b{attribute}\b", p.read_text(encoding="utf-8")) for p in places)
            if name.split(".")[0] in words - OUTSIDE and not found:
                wrong.append(f"{file.relative_to(ROOT)}: `{name}`")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_names_tests_that_exist(page: Path) -> None:
    for file, test in re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", source, re.M), f"{file}::{test}"
