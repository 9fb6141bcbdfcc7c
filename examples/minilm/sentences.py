"""Some thousand real sentences that every machine with Python has: what the standard library says about itself.

They are of the docstrings of its modules, which are read and not imported, and of the language reference that `help()`
shows. One version of Python always gives the same, in the same order.
"""

import argparse
import ast
import json
import re
import sys
import sysconfig
import warnings
from pathlib import Path

LEAST_WORDS, MOST_LETTERS = 5, 600
CODE = re.compile(r">>>|::|\.\.\. |^\s*[-+=|*#]{2}|\w\(.*\n\s.*\w\(|[{}\\|<>]|=")
END = re.compile(r"(?<=[a-z)\]\"'][.!?])\s+(?=[A-Z])")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def sentences(most=None):
    """The sentences, each once, in a fixed order.

    Args:
        most: how many at most; they are then taken from all over.
    """
    found = list(dict.fromkeys(one for text in texts() for part in re.split(r"\n\s*\n", text) for one in split(part)))
    if most is None or len(found) <= most:
        return found
    return [found[index * len(found) // most] for index in range(most)]


def texts():
    """The texts in which they stand."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        parts = file.relative_to(library).parts
        if parts[0].removesuffix(".py") in sys.stdlib_module_names and not {"test", "tests", "idle_test"} & set(parts):
            yield from literals(file) if parts[0] == "pydoc_data" else docstrings(file)


def parsed(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(file.read_bytes())


def docstrings(file):
    try:
        nodes = ast.walk(parsed(file))
    except SyntaxError:  # the library has templates, too
        return
    for node in nodes:
        if isinstance(node, DOCUMENTED):
            yield ast.get_docstring(node) or ""


def literals(file):
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def split(paragraph):
    """The whole sentences of a paragraph, unless it is something else: code, a table, a list of names."""
    if CODE.search(paragraph):
        return
    for one in END.split(" ".join(paragraph.split())):
        words = one.split()
        if (
            one[0:1].isupper()
            and one[-1] in ".!?"
            and len(words) >= LEAST_WORDS
            and len(one) <= MOST_LETTERS
            and sum(word.isalpha() for word in words) > len(words) // 2
        ):
            yield one


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="where to write them, one a line; .jsonl: as the rows of a job")
    parser.add_argument("--most", type=int, default=None, help="so many at most")
    options = parser.parse_args()
    found = sentences(options.most)
    lines = [json.dumps({"text": one}) if options.file.suffix == ".jsonl" else one for one in found]
    options.file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(found)} sentences are in {options.file}")


if __name__ == "__main__":
    main()
