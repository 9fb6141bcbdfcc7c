"""The graphs of the examples, exported in processes of their own: this one never imports MindSpore."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from ....schemas.errors import ModelError
from .bench import Bench

__all__ = ["configured", "exported"]

_SECONDS = 600.0


def configured(text: str, **options: int) -> str:
    """A configuration with other numbers in its declarations.

    Args:
        text: of servable_config.py.
        options: such as slots; each must be there.

    Raises:
        ModelError: one is not.
    """
    for name, value in options.items():
        text, count = re.subn(rf"\b{name}=\d+", f"{name}={value}", text)
        if not count:
            raise ModelError(f"the configuration says nothing of {name}")
    return text


def exported(bench: Bench, example: str, **options: int) -> Path:
    """A copy of an example's servables with graphs that its `export_model.py` has written, made once in a run.

    Args:
        bench: whose folders these are.
        example: its name.
        options: of its `export_model.py`, such as rank_size; they replace what the configurations say of the same name.

    Returns:
        The folder: of the servables' folders and of `model`.

    Raises:
        ModelError: the export failed; with its last line.
    """
    home = bench.example(example)
    folder = bench.folder("-".join([example, *(f"{name}-{value}" for name, value in options.items())]))
    if (folder / "model").is_dir():
        return folder
    bench.say(f"exporting the graphs of {example}")
    for configuration in home.glob("*/servable_config.py"):
        copy = folder / configuration.parent.name / configuration.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(configured(configuration.read_text(encoding="utf-8"), **options), encoding="utf-8")
        for module in configuration.parent.glob("*.py"):  # what it imports
            if module != configuration:
                shutil.copy2(module, copy.parent)
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    run = subprocess.run(
        [sys.executable, str(home / "export_model.py"), "--output", str(folder), *given],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
        cwd=home,
        start_new_session=True,
    )
    if run.returncode:
        last = (run.stderr.strip() or run.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ModelError(f"the export of the graphs of {example} failed: {last}")
    return folder
