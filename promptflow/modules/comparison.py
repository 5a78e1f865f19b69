"""Multi-chain comparison: several chains of thought, read together before one answer is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from promptflow.flow import Flow, Module
from promptflow.lm.remote import check_options
from promptflow.modules.predict import OWN
from promptflow.modules.reasoning import ChainOfThought
from promptflow.modules.rounds import Rounds, check_rounds
from promptflow.modules.stepwise import instructed, with_input
from promptflow.modules.transcript import written
from promptflow.signatures import document_of, read_document

CHAINS = "compare_chains"


class MultiChainComparison(Module):
    """Sample ``m`` chains of thought, then reason over all of them and answer.

    Meta-reasoning over multiple chains (Yoran et al. 2023, arXiv 2304.13007): where a vote counts
    answers, this reads how they were reached, and may answer what no chain said. The chains are one
    batch at ``temperature``; ``options`` are those of ``ChainOfThought``.
    """

    def __init__(
        self,
        signature: str | Path | type[Any],
        *,
        m: int = 3,
        temperature: float = 0.7,
        **options: Any,
    ) -> None:
        super().__init__()
        check_options("MultiChainComparison", options, (*OWN, "m"))
        check_rounds("MultiChainComparison", m, None, temperature)
        self.m, self.temperature = m, temperature
        self.chain = ChainOfThought(signature, **options)
        words = read_document(CHAINS, bundled_only=True)
        made = instructed(document_of(signature).signature, words)
        made = with_input(made, "chains", words.signature.input_fields["chains"])
        self.compare = ChainOfThought(made, **options)

    def flow(self, **inputs: Any) -> Flow:
        """Return the outputs of the comparison, with ``chains``, ``samples`` and ``failed``.

        Raises the first error where all chains failed.
        """
        rounds = Rounds(self.chain, inputs, self.m, self.temperature)
        yield from rounds.draw()
        if not rounds.samples:
            raise rounds.errors[0]
        chains = [written(sample) for sample in rounds.samples]
        final = yield from self.compare.flow(**inputs, chains=chains)
        return final.extended(chains=chains, samples=rounds.drawn, failed=len(rounds.errors))

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings as JSON data, without the predictors."""
        return {"m": self.m, "temperature": self.temperature}

    def show(self, **inputs: Any) -> str:
        """Print the exact prompt of a chain, token by token, and return its text."""
        return self.chain.show(**inputs)
