"""Commands that run programs on a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from promptflow.cli.console import Json, print_json, print_rows, tokens_of
from promptflow.cli.decoding import MANY, Decoded, decodes
from promptflow.cli.options import DEFAULT_MODEL, ChatTemplate, Chosen, Layout, Model, Thinking
from promptflow.errors import BudgetExceeded, DataError
from promptflow.terminal import say

if TYPE_CHECKING:
    from promptflow.evaluation import Evaluation
    from promptflow.optimization import Budget, Optimization

Program = Annotated[
    str,
    typer.Argument(
        help="A saved program's folder, module:attribute, the name of a signature, "
        "or a signature like 'question -> answer'."
    ),
]
Inputs = Annotated[
    list[str], typer.Option("--input", "-i", help="A field, name=value; JSON where not text.")
]
Imports = Annotated[
    list[str],
    typer.Option(
        "--import", help="A module or file.py to import first: a saved program's field types."
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Take a saved program though its model or index differs now."),
]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal results.")]
Column = Annotated[
    list[str],
    typer.Option("--column", help="A column's name for the program: 'question text=question'."),
]
Encoding = Annotated[
    str | None, typer.Option(help="The encoding of the data, where it cannot be found: cp1252.")
]
Key = Annotated[
    str | None, typer.Option(help="The list of examples where JSON holds several: train.")
]
Metric = Annotated[str, typer.Option(help="A metric's name, module:function or file.py:function.")]
Metrics = Annotated[
    list[str],
    typer.Option(
        "--metric",
        help="A metric's name, module:function or file.py:function; else what suits the output's "
        "type. Again, for others of the same runs.",
    ),
]


def ready(
    chosen: Chosen, program: str, imports: Sequence[str], force: bool = False
) -> tuple[Any, Any]:
    """Return the configured model and the program, whose lock is compared with the model."""
    from promptflow.program import import_code, is_folder, load_program, resolve_program

    for place in imports:
        import_code(place)
    lm = chosen.configured()
    load = force and is_folder(program)
    resolved = load_program(program, force=True) if load else resolve_program(program)
    chosen.lay_out(resolved, lm)
    return lm, resolved


def given_inputs(pairs: Sequence[str], program: Any) -> dict[str, Any]:
    """Return the inputs of ``name=value`` pairs, each value read as its field's type."""
    types = {
        name: field.annotation
        for _, predictor in program.named_predictors()
        for name, field in predictor.signature.input_fields.items()
    }
    inputs = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise DataError(f"--input {pair!r}: expected name=value, as in question='Who?'")
        inputs[name] = _value(name, types.get(name, str), value)
    return inputs


def _value(name: str, annotation: Any, text: str) -> Any:
    from pydantic import TypeAdapter, ValidationError

    if annotation is str:
        return text
    adapter = TypeAdapter(annotation)
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        try:
            return adapter.validate_python(text)  # an option or a date needs no quotes
        except ValidationError:
            fault = error.errors()[0]["msg"]
            raise DataError(f"--input {name}={text!r}: {fault}; give its value as JSON") from None


@decodes
def run(
    program: Program,
    *,
    inputs: Inputs = [],  # noqa: B006
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    layout: Layout = None,
    thinking: Thinking = None,
    seed: Seed = 0,
    imports: Imports = [],  # noqa: B006
    force: Force = False,
    as_json: Json = False,
    decoded: Decoded,
) -> None:
    """Run a program on one input."""
    from promptflow import flow
    from promptflow.evaluation.data import plain

    chosen = Chosen(model, chat_template, layout, thinking)
    lm, resolved = ready(chosen, program, imports, force)
    given = given_inputs(inputs, resolved)
    resolved = decoded.applied(resolved, answers=MANY)
    chosen.lay_out(resolved, lm)
    prediction = flow.run(resolved, lm=lm, seed=seed, **given)
    fields: Any = plain(dict(prediction.items()))
    several = decoded.technique is None and (decoded.n or 1) > 1
    answers = [plain(dict(one.items())) for one in prediction.completions] if several else [fields]
    if as_json:
        counts = {"tokens": tokens_of(prediction._usage), "cut": prediction._was_cut()}
        print_json({"answers": answers, **counts} if several else {**fields, **counts})
        return
    if prediction._was_cut():
        say("an answer ended at its token limit; raise --max-tokens", error=True)
    for number, one in enumerate(answers, 1):
        if several:
            say(f"[{number}]")
        for name, value in one.items():
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            say(f"{name}: {shown}")


def show(
    program: Program,
    *,
    inputs: Inputs = [],  # noqa: B006
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    layout: Layout = None,
    thinking: Thinking = None,
    imports: Imports = [],  # noqa: B006
    force: Force = False,
    form: Annotated[
        Literal["text", "json", "html"],
        typer.Option("--format", help="text, coloured by origin on a terminal; json; or html."),
    ] = "text",
) -> None:
    """Print the exact prompt for an input.

    Its parts by where they come from (template, demo, input, slot), with the tokens of each and the
    share that is cached. Nothing is generated.
    """
    from promptflow.modules.show import page, shown

    lm, resolved = ready(Chosen(model, chat_template, layout, thinking), program, imports, force)
    given = given_inputs(inputs, resolved)
    prompts: dict[str, Any] = {}
    missing: dict[str, list[str]] = {}
    for name, predictor in resolved.named_predictors():
        wanted = set(predictor.signature.input_fields)
        if left := sorted(wanted - set(given)):
            missing[name] = left
        else:
            prompts[name] = shown(predictor, {n: given[n] for n in given if n in wanted}, lm)
    if form == "html":
        say(page(prompts))
    elif form == "json":
        made = {name: prompt.to_json() for name, prompt in prompts.items()}
        print_json({"prompts": made, "missing": missing})
    else:
        for prompt in prompts.values():
            prompt.say()
    for name, left in missing.items() if form != "json" else ():
        say(
            f"{name}: needs {', '.join(left)}; give them with --input to see its prompt",
            error=form == "html",
        )


@decodes
def evaluate(
    program: Program,
    data: Annotated[Path, typer.Argument(help="A .jsonl, .json, .csv or .tsv file of examples.")],
    *,
    metric: Metrics = [],  # noqa: B006
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    layout: Layout = None,
    thinking: Thinking = None,
    column: Column = [],  # noqa: B006
    encoding: Encoding = None,
    key: Key = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a report, the records and the journal of finished runs."),
    ] = None,
    imports: Imports = [],  # noqa: B006
    force: Force = False,
    as_json: Json = False,
    decoded: Decoded,
) -> None:
    """Score a program on data.

    The score comes with its 95 % interval. With --out, a run that was killed continues with the
    same command.
    """
    from promptflow.evaluation import find_metric, read_examples
    from promptflow.evaluation.evaluate import evaluate

    how = reading(column, encoding, key)  # and the metrics, before a model is read
    scored_by, *beside = [find_metric(name) for name in metric] or [None]  # type: ignore[list-item]
    chosen = Chosen(model, chat_template, layout, thinking)
    lm, resolved = ready(chosen, program, imports, force)
    resolved = decoded.applied(resolved)
    chosen.lay_out(resolved, lm)
    examples = read_examples(data, resolved, **how)
    journal = None if out is None else out / "journal.sqlite"
    result = evaluate(
        resolved, examples, scored_by, beside=beside, lm=lm, seed=seed, journal=journal
    )
    if out is not None:
        from promptflow.report import write_report
        from promptflow.storage import write_json

        write_json(out / "result.json", result.to_json(records=True))
        write_report(out / "report.html", result)
    if as_json:
        print_json(result.to_json())
    else:
        _print_scores(result)
        if result.exactness:
            say(result.exactness)
        left_out = f"{result.errors} errors, {result.ungraded} without a gold value"
        left_out += f", {result.cut} cut at a token limit"
        say(f"{left_out}, {result.seconds:.1f} s, tokens: {tokens_of(result.usage)}")


def _print_scores(result: Evaluation) -> None:
    """Print the score, those of further metrics, and how labels were confused."""
    say(f"{result.about['metric']} {_score(result)}")
    if own := result.about.get("self_judged"):
        say(f"{', '.join(own)}: the model judged its own text, which it may prefer", error=True)
    for name, found in result.beside.items():
        say(f"{name} {found.mean:.3f} ({found.low:.3f} to {found.high:.3f}, n={found.n})")
    if table := result.confusion:
        columns = list(next(iter(table.values())))
        rows = [[gold, *map(str, row.values())] for gold, row in table.items()]
        print_rows(["gold label, and what it was called", *columns], rows)


def reading(column: Sequence[str], encoding: str | None, key: str | None) -> dict[str, Any]:
    """Return how data is read, from the options that say so."""
    columns = {}
    for pair in column:
        name, sign, field = pair.rpartition("=")
        if not (sign and name and field):
            raise DataError(
                f"--column {pair!r}: expected COLUMN=FIELD, as in 'question text=question'"
            )
        columns[name] = field
    return {"columns": columns, "encoding": encoding, "key": key}


def _score(result: Evaluation) -> str:
    return f"{result.score:.3f} ({result.low:.3f} to {result.high:.3f}, n={result.n})"


def _budget(text: str) -> Budget:
    """Return the budget of text like ``calls=300,seconds=600``."""
    from promptflow.optimization import Budget

    limits: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        try:
            limits[name.strip()] = float(value) if name.strip() == "seconds" else int(value)
        except ValueError:
            raise BudgetExceeded(f"--budget {pair!r}: expected a number, as in calls=300") from None
    try:
        return Budget(**limits)
    except TypeError:
        raise BudgetExceeded(
            f"--budget {text!r}: the limits are calls, tokens and seconds, as in calls=300"
        ) from None


def optimize(
    program: Program,
    train: Annotated[Path, typer.Argument(help="Examples to search on.")],
    *,
    dev: Annotated[
        Path | None, typer.Option(help="Held-out examples; else a seeded part of TRAIN.")
    ] = None,
    metric: Metric = "f1",
    model: Model = DEFAULT_MODEL,
    chat_template: ChatTemplate = None,
    layout: Layout = None,
    thinking: Thinking = None,
    column: Column = [],  # noqa: B006
    encoding: Encoding = None,
    key: Key = None,
    budget: Annotated[
        str, typer.Option(help="calls=N, tokens=N, seconds=N, or several with commas between.")
    ] = "calls=300",
    try_layout: Annotated[
        list[str],
        typer.Option(help="A layout to try, chat, fields, json or a .jinja file; again, for more."),
    ] = [],  # noqa: B006
    seed: Seed = 0,
    imports: Imports = [],  # noqa: B006
    out: Annotated[
        Path, typer.Option(help="Folder of the program, report and journal that are written.")
    ] = Path("runs/optimize"),
) -> None:
    """Search for a better prompt.

    Demos and instructions are raced, and the winner is confirmed on held-out data. A run that was
    killed continues with the same command.
    """
    from promptflow.evaluation import find_metric, read_examples
    from promptflow.optimization.search import Search, optimize
    from promptflow.program import check_savable

    how, scored_by = reading(column, encoding, key), find_metric(metric)  # before a model is read
    limits = _budget(budget)
    lm, resolved = ready(Chosen(model, chat_template, layout, thinking), program, imports)
    check_savable(resolved, out / "program")
    result = optimize(
        resolved,
        read_examples(train, resolved, **how),
        None if dev is None else read_examples(dev, resolved, **how),
        scored_by,
        lm=lm,
        budget=limits,
        seed=seed,
        journal=out / "journal.sqlite",
        search=Search(layouts=tuple(try_layout)),
        announce=lambda plan: say(str(plan), error=True),
    )
    _keep(result, out)


def _keep(result: Optimization, out: Path) -> None:
    """Write the result of a search to its folder, and say what it is."""
    from promptflow.program import save_program
    from promptflow.report import write_report
    from promptflow.storage import write_json

    save_program(result.program, out / "program", lock={"data": result.about["data"]})
    write_json(out / "result.json", result.to_json())
    write_report(out / "report.html", result)
    say(f"start  {_score(result.start)}")
    say(f"winner {_score(result.winner)}")
    say(result.reason)
    if result.exactness:
        say(result.exactness)
    say(f"program {out / 'program'}, report {out / 'report.html'}")
