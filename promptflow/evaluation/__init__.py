"""Scores with intervals: metrics, evaluation of a program on data, paired comparison."""

from promptflow.evaluation.arena import Arena, arena, read_outputs
from promptflow.evaluation.bymodel import ByModel
from promptflow.evaluation.corpus import Corpus
from promptflow.evaluation.data import load_data, split
from promptflow.evaluation.detection import Detection, detect
from promptflow.evaluation.evaluate import (
    Comparison,
    Evaluation,
    compare,
    evaluate,
)
from promptflow.evaluation.extraction import stated
from promptflow.evaluation.inputs import input_fields, read_examples
from promptflow.evaluation.judged import groundedness, judged_by
from promptflow.evaluation.labels import accuracy, brier, confusion, ece, macro_f1
from promptflow.evaluation.likeness import cosine, perplexity
from promptflow.evaluation.metrics import Metric, contains, exact_match, f1, numeric
from promptflow.evaluation.ngrams import bleu, chrf, rouge_1, rouge_2, rouge_l
from promptflow.evaluation.ranking import (
    citation_precision,
    citation_recall,
    mrr,
    ndcg,
    retrieved,
)
from promptflow.evaluation.rating import Played, Rating, WinRate, rate, win_rate
from promptflow.evaluation.redteam import Attack, RedTeam, own_attacks, read_attacks, redteam
from promptflow.evaluation.registry import METRICS, default_metric, find_metric
from promptflow.evaluation.scoring import Record

__all__ = [
    "METRICS",
    "Arena",
    "Attack",
    "ByModel",
    "Comparison",
    "Corpus",
    "Detection",
    "Evaluation",
    "Metric",
    "Played",
    "Rating",
    "Record",
    "RedTeam",
    "WinRate",
    "accuracy",
    "arena",
    "bleu",
    "brier",
    "chrf",
    "citation_precision",
    "citation_recall",
    "compare",
    "confusion",
    "contains",
    "cosine",
    "default_metric",
    "detect",
    "ece",
    "evaluate",
    "exact_match",
    "f1",
    "find_metric",
    "groundedness",
    "input_fields",
    "judged_by",
    "load_data",
    "macro_f1",
    "mrr",
    "ndcg",
    "numeric",
    "own_attacks",
    "perplexity",
    "rate",
    "read_attacks",
    "read_examples",
    "read_outputs",
    "redteam",
    "retrieved",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "split",
    "stated",
    "win_rate",
]
