"""The graphs of examples/gpt, over one rank and several: every token is the whole model's, computed here in numpy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rankmq.workers.collectives import segment_name
from rankmq.workers.rendezvous import free_port

from .gpt_ranks import CACHES, CONTEXT, GRAPHS, PROMPT, SLOTS, Text, run_ranks
from .gpt_reference import LAYERS, logits, read

pytest.importorskip("mindspore")
pytestmark = [pytest.mark.mindspore, pytest.mark.timeout(300)]

EXPORT = Path(__file__).parents[2] / "examples" / "gpt" / "export_model.py"


def export(folder, ranks):
    run = subprocess.run(
        [sys.executable, str(EXPORT), "--output", str(folder), "--rank-size", str(ranks)],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return folder / "model"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The whole model's, as the export for one rank has kept them; those for several keep the same."""
    return read(export(tmp_path_factory.mktemp("gpt"), 1))


@pytest.fixture(scope="module")
def after_prompt(weights):
    """What is thought of each new token of a text, given those before it; the best are those of greedy decoding."""
    known = {}

    def of(text, dtype=np.float64):
        tokens = np.append(text.prompt, text.tokens[:-1]).astype(int)
        key = (tokens.tobytes(), dtype)
        if key not in known:
            cast = {name: array.astype(dtype) for name, array in weights.items()}
            known[key] = logits(cast, tokens)[text.prompt.size - 1 :]
        return known[key]

    return of


# -------------------------------------------------------------------------------------------------------------- texts


def texts_to_write():
    random = np.random.default_rng(1)

    def text(size, new, slot=0):
        return Text(random.integers(0, 256, size), new, slot)

    some = [text(PROMPT, 64, 9), text(5, 64, 2)]
    return {
        "in_parts": some,
        "whole": [Text(one.prompt, one.new) for one in some],
        "coming_and_going": [
            *(text(size, new) for size, new in ((1, 40), (PROMPT, CONTEXT - PROMPT + 1))),
            *(text(random.integers(1, PROMPT + 1), random.integers(2, 30)) for _ in range(8)),
        ],
        "beside_bad_positions": [text(100, 6, 4)],
    }


@pytest.fixture(
    scope="module",
    params=[(1, "none"), (2, "mccl"), (4, "shm"), (8, "mccl")],
    ids=["1 rank", "2 ranks, mccl", "4 ranks, shm", "8 ranks, mccl"],
)
def written(request, tmp_path_factory):
    """The texts as rank 0 has written them, the same of all ranks, and the exported model."""
    size, communication = request.param
    address = segment_name("test-gpt", 1) if communication == "shm" else f"127.0.0.1:{free_port('127.0.0.1')}"
    model = export(tmp_path_factory.mktemp("gpt"), size)
    texts = texts_to_write()
    results = run_ranks(model, size, communication, address, texts)
    for script, its_texts in texts.items():
        for text, tokens in zip(its_texts, results[0][script], strict=True):
            text.tokens = tokens
    return texts, results, model


# -------------------------------------------------------------------------------------------------------------- tests


def test_every_token_is_the_whole_models(written, after_prompt):
    texts, _, _ = written
    for script, its_texts in texts.items():
        for text in its_texts:
            assert len(text.tokens) == text.new
            expected = after_prompt(text).argmax(axis=1)
            assert text.tokens == expected.tolist(), f"{script}: prompt of {text.prompt.size} in slot {text.slot}"


def test_in_parts_and_whole_give_the_same_tokens(written):
    texts, _, _ = written
    assert [one.tokens for one in texts["in_parts"]] == [one.tokens for one in texts["whole"]]


def test_every_rank_knows_the_tokens(written):
    _, results, _ = written
    assert all(result == results[0] for result in results)


def test_the_division_does_not_change_the_weights(written, weights):
    _, _, model = written
    kept = read(model)
    assert kept.keys() == weights.keys()
    assert all(np.array_equal(kept[name], weights[name]) for name in weights)


def test_the_best_token_is_far_ahead_of_what_rounding_does(written, after_prompt):
    """Without it the other tests would tell nothing about another machine."""
    texts, _, _ = written
    for text in (text for its_texts in texts.values() for text in its_texts):
        exact = after_prompt(text)
        rounding = np.abs(after_prompt(text, np.float32) - exact).max()
        best = np.sort(exact, axis=1)
        assert (best[:, -1] - best[:, -2]).min() > 20 * rounding
    assert all(len(set(text.tokens)) > 30 for text in texts["in_parts"])  # not a few tokens over and over


def test_the_caches_have_the_same_names_in_prefill_and_decode(written):
    from mindspore.train import mind_ir_pb2

    _, _, model = written
    ranks = len(list(model.glob("device*")))
    names = {f"{kind}.{layer}" for kind in ("kcache", "vcache") for layer in range(LAYERS)}
    for rank in range(ranks):
        for graph in GRAPHS:
            file = mind_ir_pb2.ModelProto()
            file.ParseFromString((model / f"device{rank}" / f"{graph}.mindir").read_bytes())
            found = {
                one.name.rpartition(":")[2]: tuple(one.dims) for one in file.graph.parameter if "cache" in one.name
            }
            shape = (SLOTS * CONTEXT, 256 // ranks)
            assert found == ({} if graph == "combined" else dict.fromkeys(names, shape))
    assert {name.rpartition(".")[0] + ".*" for name in names} == set(CACHES)


def test_the_configuration_goes_with_the_graphs():
    from rankmq.engine.loader import load_servable

    servable = load_servable(EXPORT.parent, "gpt", require_models=False)
    (model,) = servable.models
    assert (model.rank_size, model.slots, model.shared_parameters) == (8, SLOTS, CACHES)
    assert [graph.file for graph in model.subgraphs] == [f"{graph}.mindir" for graph in GRAPHS]
