"""Load a servable: execute its configuration file, find its model files, check it all, and give it as data."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, MappingProxyType, ModuleType

from ..schemas.errors import ModelError, ServableError
from .checks import check_servable
from .declaration import Declaration, declaring
from .model_files import ModelFiles, check_model_files, find_model_files, versions_of
from .servable import Method, Pipeline, Servable, Subgraph

__all__ = ["CONFIGURATION_FILE", "files_of_ranks", "load_servable"]

CONFIGURATION_FILE = "servable_config.py"

_LOADING = threading.RLock()  # sys.path and sys.modules are the whole process's while a file is executed
_NUMBERS = itertools.count(1)


def load_servable(
    directory: Path,
    name: str,
    version: int = 0,
    *,
    model_files: Sequence[Sequence[Path]] | None = None,
    require_models: bool = True,
) -> Servable:
    """Load `<directory>/<name>/servable_config.py` and check it.

    The file runs as a module of its own, with its folder on the path for the modules beside it, which it must import at
    its top; nothing of it stays behind in `sys.modules` or `sys.path`.

    Args:
        directory: the folder that holds the servable's folder.
        name: the servable's name.
        version: one of its numbered sub-folders; 0 is the newest. A servable without numbered folders has version 1.
        model_files: the files per rank and subgraph, where they are not to be searched for.
        require_models: every rank's files must be there. False for an orchestrator whose agents are elsewhere: files
            that are not found are then none of its business.

    Raises:
        ServableError: the configuration is wrong; with file and line.
        ModelError: a model file is missing.
    """
    directory = Path(os.path.abspath(directory))
    home, file = directory / name, directory / name / CONFIGURATION_FILE
    code = _compile(name, file)
    version = _resolve(home, name, version, any_version=model_files is not None or not require_models)
    declaration = Declaration(name, str(file))
    _execute(code, declaration, home)
    servable = _assemble(declaration, version, file)
    files = _find(servable, directory, model_files, require_models) if servable.models else None
    servable = _with_files(servable, files)
    check_servable(servable)
    return servable


def _compile(name: str, file: Path) -> CodeType:
    if not name or name.startswith(".") or Path(name).name != name:
        raise ServableError(f"a servable's name is the name of its folder, which {name!r} cannot be")
    try:
        return compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ServableError(f"{type(error).__name__}: {error.msg}", file=str(file), line=error.lineno) from error
    except ValueError as error:
        raise ServableError(f"it is not Python source: {error}", file=str(file)) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise ServableError(f"the configuration of servable {name} cannot be read: {why}", file=str(file)) from error


def _resolve(home: Path, name: str, version: int, *, any_version: bool) -> int:
    try:
        versions = versions_of(home)
    except OSError as error:
        raise ServableError(f"the folder of servable {name} cannot be read: {error}") from error
    if version < 0:
        raise ServableError(f"servable {name}: a version is a number from 1, or 0 for the newest, not {version}")
    if version == 0:
        return versions[-1] if versions else 1
    if version in versions or (not versions and (version == 1 or any_version)):
        return version
    known = ", ".join(map(str, versions)) or "1"
    raise ServableError(f"servable {name} has no version {version} in {home}; there is: {known}")


def _execute(code: CodeType, declaration: Declaration, home: Path) -> None:
    module = ModuleType(f"rankmq_servable_{next(_NUMBERS)}")
    module.__file__ = declaration.file
    with _LOADING, _beside(home), declaring(declaration):
        sys.modules[module.__name__] = module
        try:
            exec(code, module.__dict__)
        except ServableError as error:
            if error.file is not None:
                raise
            raise declaration.failed(error) from error
        except (Exception, SystemExit) as error:
            raise declaration.failed(error) from error
        finally:
            del sys.modules[module.__name__]


@contextmanager
def _beside(home: Path) -> Iterator[None]:
    """Let the modules in `home` be imported, whatever else has their names, and forget them again."""
    own = {path.stem for path in home.glob("*.py")} | {path.parent.name for path in home.glob("*/__init__.py")}
    own -= set(sys.stdlib_module_names)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in own}
    before = set(sys.modules)
    sys.path.insert(0, str(home))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(home) in sys.path:
            sys.path.remove(str(home))
        for name in set(sys.modules) - before:
            if _is_from(sys.modules[name], home):
                del sys.modules[name]
        sys.modules.update(hidden)


def _is_from(module: ModuleType, home: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(isinstance(place, str) and Path(os.path.abspath(place)).is_relative_to(home) for place in places)


def _assemble(declaration: Declaration, version: int, file: Path) -> Servable:
    entries, models = declaration.entries, tuple(declaration.models)
    return Servable(
        name=declaration.name,
        version=version,
        directory=file.parent,
        file=file,
        models=models,
        methods=MappingProxyType({name: entry for name, entry in entries.items() if isinstance(entry, Method)}),
        pipelines=MappingProxyType({name: entry for name, entry in entries.items() if isinstance(entry, Pipeline)}),
        calls=tuple(declaration.calls),
        rank_size=models[0].rank_size if models else 0,
        stage_size=models[0].stage_size if models else 0,
        communication=models[0].communication if models else "none",
        model_files=None,
    )


def _find(
    servable: Servable, directory: Path, given: Sequence[Sequence[Path]] | None, required: bool
) -> ModelFiles | None:
    declared = servable.subgraph_count
    try:
        if given is None:
            found = find_model_files(
                directory, servable.name, servable.version, servable.rank_size, _patterns(servable)
            )
        else:
            found = tuple(tuple(Path(path) for path in of_rank) for of_rank in given)
        return check_model_files(found, servable.rank_size, declared)
    except ModelError:
        if required:
            raise
        return None


def _patterns(servable: Servable) -> list[str] | None:
    patterns = [graph.file for model in servable.models for graph in model.subgraphs or () if graph.file is not None]
    return patterns or None


def files_of_ranks(servable: Servable, ranks: Sequence[int]) -> dict[int, tuple[Path, ...]]:
    """The model files of some ranks of a servable; those of the others may be on other hosts.

    Args:
        servable: as loaded, with or without its model files.
        ranks: of its ranks, ascending.

    Raises:
        ModelError: one of them has no file, or not as many as the others.
    """
    if servable.model_files is not None:
        return {rank: servable.model_files[rank] for rank in ranks}
    place = servable.directory.parent, servable.name, servable.version
    found = find_model_files(*place, servable.rank_size, _patterns(servable), ranks)
    checked = check_model_files(found, len(ranks), servable.subgraph_count, ranks)
    return dict(zip(ranks, checked, strict=True))


def _with_files(servable: Servable, files: ModelFiles | None) -> Servable:
    models = servable.models
    if files is not None and models and models[0].subgraphs is None:
        models = (dataclasses.replace(models[0], subgraphs=tuple(Subgraph() for _ in files[0])),)
    return dataclasses.replace(servable, models=models, model_files=files)
