"""Optimizers: searches for better prompts, with a journal, a budget and a held-out verdict."""

from promptflow.optimization.demos import Bootstrap, bootstrap, labelled
from promptflow.optimization.plan import Plan
from promptflow.optimization.search import Optimization, Search, optimize
from promptflow.optimization.study import Budget, Study
from promptflow.optimization.synthesize import synthesize
from promptflow.optimization.variant import Variant

__all__ = [
    "Bootstrap",
    "Budget",
    "Optimization",
    "Plan",
    "Search",
    "Study",
    "Variant",
    "bootstrap",
    "labelled",
    "optimize",
    "synthesize",
]
