"""Optimizers: searches for better prompts, with a journal, a budget and a held-out verdict."""

from promptflow.optimize.demos import Bootstrap, bootstrap, labelled
from promptflow.optimize.plan import Plan
from promptflow.optimize.search import Optimization, Search, optimize
from promptflow.optimize.study import Budget, Study
from promptflow.optimize.synthesize import synthesize
from promptflow.optimize.variant import Variant

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
