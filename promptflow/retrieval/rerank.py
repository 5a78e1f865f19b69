"""A second look at what was found: cross-encoders, which read question and passage together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptflow.child import ForkLock
from promptflow.errors import ModelInvalid, ModelNotFound, names_options
from promptflow.retrieval.embed import sentence_transformers_for
from promptflow.retrieval.passages import Passage

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

BATCH = 16


@names_options
class CrossEncoderReranker:
    """A cross-encoder by name: ``index.search(query, rerank=CrossEncoderReranker(name))``.

    ``name`` is a folder, or a repository of the Hugging Face hub that is in its cache. Nothing is
    loaded before the first search, and nothing is fetched. Raises ModelNotFound with the command
    that fetches it, and ModelInvalid for a model that gives not one score a pair.
    """

    def __init__(self, name: str | Path) -> None:
        """Take the model's name; it is loaded at the first call."""
        self.name = str(name)
        self._model: CrossEncoder | None = None
        self._lock = ForkLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to another process by the name."""
        return CrossEncoderReranker, (self.name,)

    def __deepcopy__(self, memo: dict[int, Any]) -> CrossEncoderReranker:
        """Return itself: copies of a program share the model."""
        return self

    def __call__(self, query: str, passages: Sequence[Passage]) -> list[float]:
        """Return the model's score of each passage, higher for a better one."""
        pairs = [(query, f"{p.heading}\n{p.text}" if p.heading else p.text) for p in passages]
        with self._lock:
            if self._model is None:
                self._model = _load(self.name)
            scores = self._model.predict(pairs, batch_size=BATCH, show_progress_bar=False)
        if scores.shape != (len(pairs),):
            raise ModelInvalid(
                f"{self.name}: gives {scores.shape[1:]} scores a pair, expected one: it is a "
                "classifier, not a reranker"
            )
        return [float(score) for score in scores]


def _load(name: str) -> CrossEncoder:
    with sentence_transformers_for("a cross-encoder") as library:
        try:
            model: CrossEncoder = library.CrossEncoder(name, device="cpu", local_files_only=True)
            return model
        except Exception as error:
            # Each loader has exceptions of its own for what is missing or broken.
            if Path(name).exists():
                raise ModelInvalid(
                    f"{name}: cannot be loaded as a cross-encoder ({error})"
                ) from error
            raise ModelNotFound(
                f"{name}: no such folder, and not in the cache of the Hugging Face hub. Fetch it: "
                f"hf download {name}"
            ) from error
