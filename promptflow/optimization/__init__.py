"""Optimizers: searches for better prompts, with a journal, a budget and a held-out verdict."""

from promptflow.optimization.demos import Bootstrap, bootstrap, labelled
from promptflow.optimization.plan import Plan
from promptflow.optimization.search import Optimization, Search, optimize
from promptflow.optimization.study import Budget, Study
from promptflow.optimization.synthesis import Filters, Synthesis
from promptflow.optimization.synthesize import synthesize, synthesize_like
from promptflow.optimization.variant import Variant

__all__ = [
    "Bootstrap",
    "Budget",
    "Filters",
    "Optimization",
    "Plan",
    "Search",
    "Study",
    "Synthesis",
    "Variant",
    "bootstrap",
    "labelled",
    "optimize",
    "synthesize",
    "synthesize_like",
]
