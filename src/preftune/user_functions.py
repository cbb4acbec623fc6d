"""Python functions of the user, named on the command line: `MODULE:FUNCTION` or `FILE.py:FUNCTION`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from preftune.errors import RequestError
from preftune.shell_words import path_word, word


def load_function(place: str, name: str, *, asked: str, error: type[RequestError] = RequestError) -> Any:
    """The function, or an instance of the class, `name` of a module or of a file.

    Args:
        place: a module, which may lie in the current folder, or the path of a `.py` file, also without `.py`.
        asked: what was named, and where, for messages (`Judge 'rule:m:f'`).
        error: class of what is raised.
    Raises: `error` naming what could not be found, or what a module did when it was imported.
    """
    file = _file_of(place)
    if file is None:
        module = _imported(place, asked, error)
    else:
        module = _loaded(file, place, asked, error)
    found = getattr(module, name, None)
    if found is None:
        public = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
        raise error(f"{asked}: {place} has no {name!r} (it has: {', '.join(public) or '-'}). Name one of those.")
    with _named(asked, error, f"{name}() ended", f"the class {name}"):
        made = found() if inspect.isclass(found) else found
    if not callable(made):
        raise error(f"{asked}: {name} is not a function (it is {type(found).__name__}). Name a function.")
    if is_async(made):
        raise error(f"{asked}: {name} is {ASYNC}")
    return made


ASYNC = (
    "an async function, whose call gives no answer here. Write def in place of async def, and asyncio.run(...) around "
    "what it awaits."
)


def is_async(function: Any) -> bool:
    """Whether a function, or an object that is called like one, has to be awaited."""
    called = (function, type(function).__call__) if callable(function) else ()
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in called)


def _file_of(place: str) -> Path | None:
    """The file that a place names; None for the name of a module."""
    path = Path(place).expanduser()
    if path.suffix == ".py":
        return path
    return path.with_name(f"{path.name}.py") if len(path.parts) > 1 or place.startswith(("~", ".")) else None


def _imported(name: str, asked: str, error: type[RequestError]) -> ModuleType:
    folder = str(Path.cwd())
    fix = f"that module: python -c {word(f'import {name}')} shows where it happens"
    with _named(asked, error, f"importing {name!r} ended", fix), _on_path(folder):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if not missing.name or not f"{name}.".startswith(f"{missing.name}."):
                raise
            raise error(
                f"{asked}: no Python module {name!r} can be imported (looked in {folder} too). Run from the folder "
                f"that holds {name}.py, give the path of the file (FOLDER/{name}.py:FUNCTION), or install it."
            ) from missing


def _loaded(file: Path, place: str, asked: str, error: type[RequestError]) -> ModuleType:
    """The module of a file, which is executed once; files next to it can be imported."""
    if not file.is_file():
        raise error(f"{asked}: there is no file {file} (looked in {Path.cwd()}). Correct the path.")
    whole = file.resolve()
    name = f"{file.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    made = importlib.util.spec_from_file_location(name, whole)
    if made is None or made.loader is None:
        raise error(f"{asked}: {file} is not a file of Python. Name one that ends in .py.")
    module = sys.modules[name] = importlib.util.module_from_spec(made)
    fix = f"that file: python {path_word(place)} shows where it happens"
    try:
        with _named(asked, error, f"running {place} ended", fix), _on_path(str(whole.parent)):
            made.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _named(asked: str, error: type[RequestError], what: str, fix: str) -> Iterator[None]:
    """Names what the user's code raised. A module that exits would look like success, so that counts too."""
    try:
        yield
    except RequestError:
        raise
    except (Exception, SystemExit) as raised:
        if isinstance(raised, SystemExit) and type(raised) is not SystemExit:
            raise  # a signal that stops the command
        raise error(f"{asked}: {what} in {type(raised).__name__}: {raised}. Correct {fix}.") from raised


@contextmanager
def _on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
