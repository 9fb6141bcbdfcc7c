"""What `rankmq demo` asks its examples, and how it shows what they answer."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from ..engine.client import Client
    from .progress import StartProgress

__all__ = ["ConversationDemo", "ExampleDemo", "MatmulDemo", "SearchDemo"]

_EXPECTED = {"x": -96.0, "z": -144.0}
_QUESTION = "What is the capital of France?"
_SEARCHED = "How do I read a file one line at a time?"
_SENTENCES, _NEAREST, _LEAST_NEAR = 3000, 5, 0.5


class ExampleDemo(Protocol):
    """One example."""

    name: str
    """Of its folder and of its servable."""
    method: str
    seconds: float
    """Within which an answer is there."""

    async def ask(self, client: Client, took: Callable[[str, float], None], progress: StartProgress) -> None:
        """Asks what is to be asked, and says by `took` how many seconds each part of it took."""

    def show(self, example: Path) -> str:
        """Shows the answer that came.

        Raises:
            OperatorError: it is wrong.

        Returns:
            What is to be said in the end.
        """


class MatmulDemo(ExampleDemo):
    """The original document's request, twice."""

    name, method, seconds = "matmul", "predict", 60.0

    def __init__(self) -> None:
        self._answer: list[dict[str, Any]] = []

    async def ask(self, client: Client, took: Callable[[str, float], None], progress: StartProgress) -> None:
        """See `ExampleDemo.ask`."""
        import numpy as np

        instance = {"x": np.ones((128, 96), np.float32), "y": np.ones((128, 96), np.float32)}
        for part in ("first answer", "second answer"):
            began = time.monotonic()
            await asyncio.to_thread(client.connect)
            self._answer = await asyncio.wrap_future(client.infer_async(instance))
            took(part, time.monotonic() - began)

    def show(self, example: Path) -> str:
        """See `ExampleDemo.show`."""
        from ..schemas.errors import OperatorError

        typer.echo(f"result:\n {self._answer}\n")
        right = len(self._answer) == 1 and all(
            self._answer[0][name].shape == (128, 16) and (self._answer[0][name] == value).all()
            for name, value in _EXPECTED.items()
        )
        if not right:
            raise OperatorError(
                f"x must be -96 and z -144 everywhere; if other graphs are in {example / 'model'}, remove it"
            )
        return "x is -96 and z is -144 everywhere, as it must be."


class ConversationDemo(ExampleDemo):
    """A question, and its answer as it comes.

    Args:
        question: None for one whose answer is known.
    """

    name, method, seconds = "smollm2", "chat", 300.0

    def __init__(self, question: str | None) -> None:
        self._question = question or _QUESTION
        self._known = question is None
        self._answer: dict[str, Any] = {}

    async def ask(self, client: Client, took: Callable[[str, float], None], progress: StartProgress) -> None:
        """See `ExampleDemo.ask`."""
        await asyncio.to_thread(self._converse, client, took, progress)

    def _converse(self, client: Client, took: Callable[[str, float], None], progress: StartProgress) -> None:
        began = time.monotonic()
        shown, attempt = "", 0
        with client.stream({"prompt": self._question, "options": "{}"}) as stream:
            progress.close()
            typer.echo(f"\n> {self._question}")
            for part in stream:
                text = str(part.outputs["text"])
                if not attempt:
                    took("first words", time.monotonic() - began)
                elif part.attempt != attempt or not text.startswith(shown):
                    typer.echo("\n(the ranks were lost; again)")
                    shown = ""
                typer.echo(text.removeprefix(shown), nl=False)
                shown, attempt = text, part.attempt
            self._answer = stream.result()[0]
        took("whole answer", time.monotonic() - began)
        typer.echo(str(self._answer["text"]).removeprefix(shown) + "\n")

    def show(self, example: Path) -> str:
        """See `ExampleDemo.show`."""
        from ..schemas.errors import OperatorError

        if self._known and "Paris" not in str(self._answer["text"]):
            raise OperatorError(f"this is no right answer; if other graphs are in {example / 'model'}, remove it")
        count, asked = self._answer["tokens"].size, int(self._answer["prompt_tokens"])
        return f"{asked} tokens in, {count} out, by eight ranks."


class SearchDemo(ExampleDemo):
    """Some thousand sentences by meaning, and those that are nearest to a question.

    Args:
        example: the example's folder, whose own search this is.
        question: None for one that the sentences have something to say about.

    Raises:
        ConfigurationError: it has none.
    """

    name, method, seconds = "minilm", "embed", 600.0

    def __init__(self, example: Path, question: str | None) -> None:
        self._search: Any = _module(example / "search.py")
        self._question = question or _SEARCHED
        self._known = question is None
        self._texts: list[str] = []
        self._embeddings: Any = None
        self._asked: Any = None

    async def ask(self, client: Client, took: Callable[[str, float], None], progress: StartProgress) -> None:
        """See `ExampleDemo.ask`."""
        await asyncio.to_thread(self._search_all, client, took, progress)

    def _search_all(self, client: Client, took: Callable[[str, float], None], progress: StartProgress) -> None:
        search = self._search
        progress.say("gathering sentences")
        self._texts = search.sentences(_SENTENCES)
        progress.say(f"embedding {len(self._texts)} sentences")
        for part, texts in ((f"{len(self._texts)} sentences", self._texts), ("the question", [self._question])):
            began = time.monotonic()
            self._embeddings, self._asked = self._asked, search.embed(client, texts)
            took(part, time.monotonic() - began)

    def show(self, example: Path) -> str:
        """See `ExampleDemo.show`."""
        from ..schemas.errors import OperatorError

        found = self._search.nearest(self._asked[0], self._embeddings, _NEAREST)
        typer.echo(f"\n{self._question}")
        for number, near in found:
            typer.echo(f"  {near:.2f}  {self._texts[number]}")
        typer.echo("")
        if self._known and found[0][1] < _LEAST_NEAR:
            raise OperatorError(f"nothing is near; if another graph is in {example / 'model'}, remove it")
        return f"{len(self._texts)} sentences, of Python's standard library, by eight ranks."


def _module(file: Path) -> ModuleType:
    """A module of an example's, which imports others beside it.

    Raises:
        ConfigurationError: it is not there.
    """
    from ..schemas.errors import ConfigurationError

    specification = importlib.util.spec_from_file_location(f"rankmq_example_{file.stem}", file)
    if not file.is_file() or specification is None or specification.loader is None:
        raise ConfigurationError(f"no {file.name} in {file.parent}: run this in a clone of rankmq, or give --example")
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(file.parent))
    try:
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module
