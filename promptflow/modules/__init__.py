"""Techniques as modules: each is an ordinary DSPy module whose work is a flow."""

from promptflow.modules.agent import Agent, Step, Steps
from promptflow.modules.agreement import Agreement, fit_agreement
from promptflow.modules.comparison import MultiChainComparison
from promptflow.modules.conversation import Conversation, Turn
from promptflow.modules.decomposition import LeastToMost, SelfAsk, StepBack
from promptflow.modules.exemplars import Balanced, Nearest
from promptflow.modules.grounded import GroundedQA
from promptflow.modules.judge import Judge, PairJudge, Panel
from promptflow.modules.predict import Predict
from promptflow.modules.reasoning import ChainOfThought, ZeroShotCoT
from promptflow.modules.refine import Refine
from promptflow.modules.relevance import Relevance
from promptflow.modules.reliability import (
    Reliability,
    cohen_kappa,
    krippendorff_alpha,
    reliability,
)
from promptflow.modules.rewards import BestOf
from promptflow.modules.search import BestFirst, BreadthFirst, DepthFirst, MonteCarlo
from promptflow.modules.thoughts import TreeOfThoughts
from promptflow.modules.tools import calculate, read_only, read_tool, search_tool
from promptflow.modules.tree import Growth, Problem
from promptflow.modules.votes import ByMeaning, Votes
from promptflow.modules.voting import SelfConsistency

__all__ = [
    "Agent",
    "Agreement",
    "Balanced",
    "BestFirst",
    "BestOf",
    "BreadthFirst",
    "ByMeaning",
    "ChainOfThought",
    "Conversation",
    "DepthFirst",
    "GroundedQA",
    "Growth",
    "Judge",
    "LeastToMost",
    "MonteCarlo",
    "MultiChainComparison",
    "Nearest",
    "PairJudge",
    "Panel",
    "Predict",
    "Problem",
    "Refine",
    "Relevance",
    "Reliability",
    "SelfAsk",
    "SelfConsistency",
    "Step",
    "StepBack",
    "Steps",
    "TreeOfThoughts",
    "Turn",
    "Votes",
    "ZeroShotCoT",
    "calculate",
    "cohen_kappa",
    "fit_agreement",
    "krippendorff_alpha",
    "read_only",
    "read_tool",
    "reliability",
    "search_tool",
]
