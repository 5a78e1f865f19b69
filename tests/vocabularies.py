"""Tokenizers of model files without their weights, and the chat templates that come with them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import llama_cpp as c
import pytest

from promptflow import catalog
from promptflow.engine.model import chat_template
from promptflow.engine.model.llama import Model
from promptflow.engine.model.tokenizer import Prompts
from promptflow.errors import ModelNotFound

NAMES = ("smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m")


class Vocabulary(Model):
    """A model file of which only the vocabulary is loaded."""

    def __init__(self, path: str) -> None:
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.vocab_only = True
        self._model = c.llama_model_load_from_file(path.encode(), params)
        assert self._model, path
        self._vocab = c.llama_model_get_vocab(self._model)
        self._read_vocabulary()
        self.template = self._metadata("tokenizer.chat_template", 1 << 18)
        self.prompts = Prompts(self)

    def around(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        """Return the chat template's texts around turns by ``roles``."""
        bos, eos = c.llama_vocab_bos(self._vocab), c.llama_vocab_eos(self._vocab)
        texts = (self._special_text(bos), self._special_text(eos))
        return chat_template.scaffold(self.template, roles, *texts)

    def text_of(self, token: int) -> str:
        """Return how a token is written."""
        return self._pieces[token].decode("utf-8", "replace")

    def controls(self, tokens: Sequence[int], more: frozenset[int]) -> list[int]:
        """Return which of the tokens do something, in order: of the vocabulary, and of ``more``."""
        return [token for token in tokens if token in self.end_tokens or token in more]


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    """Return the vocabulary of a named model; skip the test where its file is not there."""
    try:
        return Vocabulary(str(catalog.locate(name)))
    except ModelNotFound as error:
        pytest.skip(str(error))
