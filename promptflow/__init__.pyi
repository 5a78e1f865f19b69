"""The public names, in one list: `__init__.py` and type checkers both read it."""

from . import errors as errors
from .engine import (
    Engine as Engine,
    EngineOptions as EngineOptions,
)
from .engine.interface import (
    ModelInfo as ModelInfo,
    Stats as Stats,
    TextEngine as TextEngine,
)
from .engine.request import (
    Alternative as Alternative,
    Beam as Beam,
    Choice as Choice,
    Completion as Completion,
    Constraint as Constraint,
    Fill as Fill,
    Json as Json,
    Lark as Lark,
    Regex as Regex,
    Request as Request,
    Sampling as Sampling,
    Slot as Slot,
    Substring as Substring,
    Text as Text,
    TokenLogprob as TokenLogprob,
    Usage as Usage,
)
from .engine.scripted import ScriptedEngine as ScriptedEngine
from .engine.stream import (
    Delta as Delta,
    Stream as Stream,
)
from .errors import PromptflowError as PromptflowError
from .evaluation import (
    METRICS as METRICS,
    Attack as Attack,
    ByModel as ByModel,
    Comparison as Comparison,
    Corpus as Corpus,
    Evaluation as Evaluation,
    Played as Played,
    Rating as Rating,
    WinRate as WinRate,
    accuracy as accuracy,
    arena as arena,
    bleu as bleu,
    brier as brier,
    chrf as chrf,
    citation_precision as citation_precision,
    citation_recall as citation_recall,
    compare as compare,
    confusion as confusion,
    contains as contains,
    cosine as cosine,
    ece as ece,
    evaluate as evaluate,
    exact_match as exact_match,
    f1 as f1,
    groundedness as groundedness,
    judged_by as judged_by,
    load_data as load_data,
    macro_f1 as macro_f1,
    mrr as mrr,
    ndcg as ndcg,
    numeric as numeric,
    own_attacks as own_attacks,
    perplexity as perplexity,
    rate as rate,
    read_attacks as read_attacks,
    read_outputs as read_outputs,
    redteam as redteam,
    retrieved as retrieved,
    rouge_1 as rouge_1,
    rouge_2 as rouge_2,
    rouge_l as rouge_l,
    stated as stated,
    win_rate as win_rate,
)
from .flow import (
    Call as Call,
    Module as Module,
    Prediction as Prediction,
    run as run,
    run_many as run_many,
    together as together,
)
from .lm import (
    LocalLM as LocalLM,
    SlotAdapter as SlotAdapter,
    configure as configure,
    load as load,
)
from .modules import (
    Agent as Agent,
    Agreement as Agreement,
    BestFirst as BestFirst,
    BestOf as BestOf,
    BreadthFirst as BreadthFirst,
    ByMeaning as ByMeaning,
    ChainOfThought as ChainOfThought,
    Conversation as Conversation,
    DepthFirst as DepthFirst,
    GroundedQA as GroundedQA,
    Growth as Growth,
    Judge as Judge,
    MonteCarlo as MonteCarlo,
    PairJudge as PairJudge,
    Panel as Panel,
    Predict as Predict,
    Problem as Problem,
    Relevance as Relevance,
    Reliability as Reliability,
    SelfConsistency as SelfConsistency,
    Step as Step,
    Steps as Steps,
    TreeOfThoughts as TreeOfThoughts,
    Turn as Turn,
    Votes as Votes,
    ZeroShotCoT as ZeroShotCoT,
    calculate as calculate,
    cohen_kappa as cohen_kappa,
    fit_agreement as fit_agreement,
    krippendorff_alpha as krippendorff_alpha,
    read_only as read_only,
    read_tool as read_tool,
    reliability as reliability,
    search_tool as search_tool,
)
from .notation import (
    Data as Data,
    Quote as Quote,
)
from .optimization import (
    Budget as Budget,
    Optimization as Optimization,
    Search as Search,
    optimize as optimize,
)
from .program import (
    load_program as load_program,
    resolve_program as resolve_program,
    save_program as save_program,
)
from .report import write_report as write_report
from .retrieval import (
    CrossEncoderReranker as CrossEncoderReranker,
    Embedder as Embedder,
    Index as Index,
    Passage as Passage,
    Retriever as Retriever,
    Together as Together,
    add_documents as add_documents,
    build_index as build_index,
    compact_index as compact_index,
    remove_documents as remove_documents,
    update_index as update_index,
    verify_index as verify_index,
    watch_index as watch_index,
)
from .signatures import (
    Document as Document,
    read_document as read_document,
    signature as signature,
    write_document as write_document,
)

__version__: str
