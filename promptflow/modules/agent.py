"""An agent: steps of thought, a tool, and its arguments, each a slot that cannot fail to parse.

A step is two calls of one prompt: the choice among the tools' names, then the chosen tool's
arguments under their own types; choosing ``finish`` fills the signature's outputs instead. What a
step wrote and what its tool returned is added at the end, so that prompts begin with those before
them. What a tool returned is data: it stands in a user's turn, between marks.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import dspy
from pydantic_core import to_jsonable_python

from promptflow.errors import (
    ContextOverflow,
    ParseError,
    ProgramError,
    PromptflowError,
    SignatureError,
    names_options,
)
from promptflow.fields import Ended, to_text
from promptflow.flow import Attempts, Call, Flow, Module, Prediction, usage_of_answer
from promptflow.layout import Decoding, data_note
from promptflow.lm import in_short, is_local
from promptflow.modules.predict import Predict
from promptflow.modules.settings import code_name
from promptflow.modules.sources import index_name, opened
from promptflow.modules.tools import Found, Tool, calculate, offered, read_tool, search_tool
from promptflow.retrieval import Passage
from promptflow.signatures import Document, document_of, own_instructions, read_document
from promptflow.storage import canonical

NAMED = ("search", "read", "calculate")
"""Tools of promptflow's own, by their names."""

FINISH = "finish"
"""The choice that ends the steps."""

OWN = ("tools", "result", "history", "thought", "tool", "called", "arguments")
"""Fields that an agent adds to its signature."""

LEFT_OUT = "(left out: no room is left for it)"


@dataclass(frozen=True, slots=True)
class Step:
    """What an agent did: its thought, the tool, its arguments, and what came back.

    ``result`` is what the model was shown; ``error`` says what a tool raised, or why it was not
    called. ``cut`` counts the characters of the result that were not shown.
    """

    thought: str
    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: str = ""
    error: str = ""
    cut: int = 0

    @property
    def call(self) -> str:
        """Return the call as code: ``search(query='...')``."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.tool}({given})"

    def __str__(self) -> str:
        """Return the step as a person reads it."""
        lines = [self.thought, self.call, *self.result.splitlines()]
        return "\n   ".join(line for line in lines if line)


class Steps(tuple[Step, ...]):
    """The steps of a run, in order."""

    def __str__(self) -> str:
        """Return all steps, numbered, one under the other."""
        return "\n".join(f"{number}. {step}" for number, step in enumerate(self, 1))


class Agent(Module):
    """Answer by calling tools, step by step (ReAct, Yao et al. 2023, arXiv:2210.03629).

    ``tools`` are functions with typed arguments, or the names ``search`` and ``read`` (of
    ``index``, a name, a path or any retriever) and ``calculate``. A function is refused unless it
    is marked ``read_only`` or named in ``allow``. After ``max_steps`` calls of tools, or
    ``max_tokens`` tokens written in steps, the agent has to answer; ``thought_tokens`` bounds a
    thought, ``argument_tokens`` a tool's arguments, which are ended where they are longer,
    ``answer_tokens`` a free text of the answer, and of a result ``result_chars`` characters are
    shown. ``demos`` are runs that come before the question, as the paper's prompts have them: the
    inputs and outputs, and ``steps`` of ``thought``, ``tool``, ``arguments`` and ``result``. Raises
    ProgramError and SignatureError.
    """

    @names_options
    def __init__(
        self,
        signature: str | Path | type[Any],
        tools: Sequence[Callable[..., Any] | str] | None = None,
        *,
        index: Any = None,
        allow: Sequence[str] = (),
        demos: Sequence[Mapping[str, Any]] = (),
        max_steps: int = 6,
        max_tokens: int = 2_000,
        thought_tokens: int = 64,
        argument_tokens: int = 512,
        answer_tokens: int = 256,
        result_chars: int = 2_000,
    ) -> None:
        super().__init__()
        self.limits = {
            "max_steps": max_steps,
            "max_tokens": max_tokens,
            "thought_tokens": thought_tokens,
            "argument_tokens": argument_tokens,
            "answer_tokens": answer_tokens,
            "result_chars": result_chars,
        }
        for name, value in self.limits.items():
            if value < 1:
                raise ValueError(f"Agent: {name}={value} is below 1")
        self.index = None if index is None else opened("Agent", index)
        own = ("calculate",) if self.index is None else NAMED
        self.given = tuple(own if tools is None else tools)
        self.allow = tuple(allow)
        self.tools = offered(_functions(self.given, self.index), allow)
        if not self.tools or FINISH in self.tools:
            raise ProgramError(
                f"Agent: the tools are {list(self.tools)}; give at least one, and none called "
                f"{FINISH!r}, which ends the steps"
            )
        document = document_of(signature)
        made = _stepping(document.signature, [*self.tools, FINISH])
        self.demos = [dict(demo) for demo in demos]
        for demo in self.demos:
            _check_demo(demo, document.signature, self.tools)
        self.step = Predict(made, demos=document.demos, layout=document.layout or None)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's settings; functions by their names, an index by its own."""
        functions = [code_name(one)["code"] for one in self.given if not isinstance(one, str)]
        tools = {"code": ", ".join(functions)} if functions else list(self.given)
        index = None if self.index is None else index_name(self.index)
        return {
            "tools": tools,
            "index": index,
            "allow": list(self.allow),
            "demos": self.demos,
            **self.limits,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Agent:
        """Return a copy that shares tools and index: files and connections are not copied."""
        made = copy.copy(self)
        memo[id(self)] = made
        shared = ("index", "tools", "given")
        held = {key: value for key, value in vars(self).items() if key not in shared}
        made.__dict__.update(copy.deepcopy(held, memo))
        return made

    def flow(self, **inputs: Any) -> Flow:
        """Return the signature's outputs, ``steps``, ``passages`` and ``ended``.

        ``passages`` are those that tools found, each once; ``ended`` tells why the steps ended:
        ``finish`` (the model's choice), ``steps``, ``tokens`` or ``repeated`` (a call whose result
        it had).
        """
        run = _Run(self, self.step.call(tools=self.described(), **inputs))
        thought = str(_own().extra["last_thought"])
        while not (ended := run.over()):
            choice = yield from run.asked(run.choosing)
            if choice.tool == FINISH:
                ended, thought = FINISH, choice.thought
                break
            yield from run.act(choice)
        final = yield from run.asked(lambda: run.finishing(thought))
        return final.extended(steps=Steps(run.steps), passages=run.passages, ended=ended)

    def described(self) -> str:
        """Return the tools as the prompt shows them, one a line."""
        return "\n".join(tool.prompt_text() for tool in self.tools.values())

    def show(self, **inputs: Any) -> str:
        """Print the exact prompt of the first choice, token by token, and return its text."""
        run = _Run(self, self.step.call(tools=self.described(), **inputs))
        return self.step.show(signature=run.choosing().signature, **run.base.inputs)


Said = dict[str, Any]
"""Fields of one turn, by name."""

Answered = Generator[list[Call], list[Any], Any]


@dataclass(slots=True)
class _Run:
    """One run of an agent while it goes: steps, passages found, tokens written."""

    agent: Agent
    base: Call
    steps: list[Step] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)  # steps whose results have no room
    passages: list[Passage] = field(default_factory=list)
    tokens: int = 0
    repeated: bool = False

    def over(self) -> str:
        """Return why no further step may be taken; empty while one may."""
        limits = self.agent.limits
        if self.repeated:
            return "repeated"
        if len(self.steps) >= limits["max_steps"]:
            return "steps"
        return "tokens" if self.tokens >= limits["max_tokens"] else ""

    def asked(self, make: Callable[[], Call]) -> Answered:
        """Return the answer of a call; where it has no room, the oldest results are left out.

        Raises what went wrong.
        """
        while True:
            [given] = yield Attempts([make()])
            usage = usage_of_answer(given)
            self.tokens += usage.generated + usage.forced
            if isinstance(given, ContextOverflow) and len(self.hidden) < len(self.steps):
                self.hidden.add(len(self.hidden))
                continue
            if isinstance(given, PromptflowError):
                raise given
            return given

    def choosing(self) -> Call:
        """Return the call that writes a thought and chooses a tool."""
        return self._call(self._signature(), {}, "tool", self.agent.limits["thought_tokens"])

    def arguing(self, tool: Tool, thought: str) -> Call:
        """Return the call that writes a tool's arguments."""
        documents = list(dict.fromkeys(passage.document for passage in self.passages))
        kind: Any = Annotated[tool.arguments(documents), Ended()]
        signature = self._signature().insert(2, "arguments", dspy.OutputField(), kind)
        given = {"thought": thought, "tool": tool.name}
        return self._call(signature, given, "arguments", self.agent.limits["argument_tokens"])

    def finishing(self, thought: str) -> Call:
        """Return the call that fills the signature's own outputs."""
        signature = self._signature(own=True)
        *_, name = signature.output_fields
        given = {"thought": thought, "tool": FINISH}
        tokens = self.agent.limits["answer_tokens"]
        return replace(self._call(signature, given, name, tokens), continued=False)

    def act(self, choice: Prediction) -> Answered:
        """Have the model write the chosen tool's arguments, call it, and note the step."""
        tool = self.agent.tools[choice.tool]
        arguments: dict[str, Any] = {}
        cut = ""
        if tool.types:
            try:
                given = yield from self.asked(lambda: self.arguing(tool, choice.thought))
            except ParseError as error:  # a validator of the user's
                self._failed(Step(choice.thought, tool.name), error)
                return
            arguments = dict(given.arguments)
            fill = given._fills.get("arguments")
            if fill is not None and fill.finish == "length":
                cut = f"the arguments were ended after {fill.generated + fill.forced} tokens"
        shown = to_jsonable_python(arguments)
        step = Step(choice.thought, tool.name, shown)
        key = canonical([tool.name, shown])
        if tool.reads and key in {canonical([s.tool, s.arguments]) for s in self.steps}:
            self.repeated = True
            same = "the same call as before; its result stands above"
            self._note(replace(step, error=same), f"({same})")
            return
        try:
            if cut and not tool.reads:
                raise ValueError(f"{cut}, and what acts is not called with a part of them")
            value = tool.function(**arguments)
        except PromptflowError:  # what an engine or a disk did: no result of a tool
            raise
        except Exception as error:
            self._failed(step, error)
            return
        known = {(passage.document, passage.chunk) for passage in self.passages}
        for one in value if isinstance(value, list | tuple) else [value]:
            # Another query gives the same passage another score.
            if isinstance(one, Found) and (one.passage.document, one.passage.chunk) not in known:
                self.passages.append(one.passage)
        told = "done" if value is None else to_text(value) or "nothing"
        self._note(step, f"({cut})\n{told}" if cut else told)

    def _failed(self, step: Step, error: Exception) -> None:
        """Note a step that came to an error: in whole for a person, in short for the model."""
        told = f"{type(error).__name__}: {error}"
        self._note(replace(step, error=told), f"error: {in_short(error)}")

    def _note(self, step: Step, text: str) -> None:
        room = self.agent.limits["result_chars"]
        cut = max(0, len(text) - room)
        if cut:
            text = f"{text[:room]}\n({cut} more characters are not shown)"
        self.steps.append(replace(step, result=text, cut=cut))

    def _signature(self, own: bool = False) -> Any:
        """Return the signature of a step: the inputs so far, thought, and one of the tools.

        The signature's ``own`` outputs come after them; demos show theirs in every step.
        """
        names = [n for n, t in self.agent.tools.items() if self.passages or not t.handles]
        kind: Any = Literal[tuple([*names, FINISH])]
        made = self.base.signature or self.agent.step.signature
        made = made.with_updated_fields("tool", type_=kind)
        for name in made.output_fields:
            if name not in OWN and not (own or (self.agent.demos and self._is_local)):
                made = made.delete(name)
        if self.steps or self.agent.demos:
            info = _own().signature.fields["result"]
            made = made.append("result", info, Annotated[(info.annotation, *info.metadata)])
            made = made.append("history", dspy.InputField(), dspy.History)
        return made

    def _demos(self, local: bool) -> list[Said]:
        outputs = [n for n in self.agent.step.signature.output_fields if n not in OWN]
        return [t for demo in self.agent.demos for t in _demonstrated(demo, outputs, local)]

    @property
    def _is_local(self) -> bool:
        lm = self.base.lm or self.agent.step.lm or dspy.settings.lm
        return lm is None or is_local(lm)

    def _call(
        self, signature: Any, given: Mapping[str, Any], until: str, tokens: int | None = None
    ) -> Call:
        """Return a call that writes on until a field, after ``given``, in a prompt of all steps."""
        local = self._is_local
        inputs = dict(self.base.inputs)
        decoding = Decoding(max_tokens=tokens) if local else Decoding()
        if self.steps or self.agent.demos:
            results = [
                LEFT_OUT if number in self.hidden else step.result
                for number, step in enumerate(self.steps)
            ]
            taken, said = _turns(inputs, self.steps, results, local)
            inputs = {**said, "history": dspy.History(messages=[*self._demos(local), *taken])}
            if local:
                signature = signature.append("called", _own().signature.fields["called"], str)
                decoding = replace(decoding, until=until)
        return replace(
            self.base,
            inputs={**inputs, **given},
            signature=signature,
            decoding=decoding,
            continued=local,
        )


def _turns(
    inputs: Said, steps: Sequence[Step], results: Sequence[str], local: bool
) -> tuple[list[Said], Said]:
    """Return what was said in steps, turn by turn, and what is said to the model after them."""
    turns, said = [], inputs
    for step, result in zip(steps, results, strict=True):
        told = {"thought": step.thought, "tool": step.tool}
        told["called"] = json.dumps(dict(step.arguments), ensure_ascii=False)
        turns.append({**said, **told})
        # DSPy's adapter shows no field that the model is not asked for.
        said = {"result": result if local else f"{step.call}\n{result}"}
    return turns, said


def _demonstrated(demo: Said, outputs: Sequence[str], local: bool) -> list[Said]:
    """Return the turns of a run that was given as an example."""
    steps = [Step(**step) for step in demo["steps"]]
    inputs = {name: v for name, v in demo.items() if name not in ("steps", "thought", *outputs)}
    turns, said = _turns(inputs, steps, [step.result for step in steps], local)
    thought = demo.get("thought") or str(_own().extra["last_thought"])
    answers = {name: demo[name] for name in outputs}
    return [*turns, {**said, "thought": thought, "tool": FINISH, **answers}]


def _check_demo(demo: Said, signature: Any, tools: Mapping[str, Tool]) -> None:
    """Raise SignatureError for a demo that is none of a signature's, or calls what is no tool."""
    wanted = [*(name for name in signature.fields if name not in OWN), "steps"]
    missing = [name for name in wanted if name not in demo]
    if unknown := [name for name in demo if name not in (*wanted, "thought")]:
        raise SignatureError(f"Agent: a demo has no field {unknown[0]!r}; it has {wanted}")
    if missing:
        raise SignatureError(f"Agent: a demo lacks {missing}; it has each of {wanted}")
    for step in demo["steps"]:
        try:
            name = Step(**step).tool
        except TypeError as error:
            raise SignatureError(
                f"Agent: a demo's step {step!r} is none: give thought, tool, arguments and result"
            ) from error
        if name not in tools:
            raise SignatureError(f"Agent: a demo calls {name!r}; the tools are {[*tools]}")


@functools.cache
def _own() -> Document:
    """Return the document of what an agent adds."""
    return read_document("agent", bundled_only=True)


def _stepping(signature: Any, names: Sequence[str]) -> Any:
    """Return a signature with an agent's own fields before its own; one that has them, with names.

    Raises SignatureError for a signature with fields of these names.
    """
    kind: Any = Literal[tuple(names)]
    fields = signature.fields
    own_first = next(iter(signature.output_fields)) == "thought"
    if own_first and {"tools", "thought", "tool"} <= set(fields):
        return signature.with_updated_fields("tool", type_=kind)
    if taken := [name for name in fields if name in OWN]:
        raise SignatureError(
            f"Agent: the fields {taken} are the agent's own; rename those of the signature"
        )
    own = _own().signature
    # The first prompt has no result yet, and its system turn is that of all others.
    said = f"{own.instructions.strip()}\n{data_note()}"
    wording = "\n\n".join(filter(None, (own_instructions(signature), said)))
    made = signature.with_instructions(wording)
    made = made.prepend("tools", own.fields["tools"], str)
    made = made.prepend("tool", own.fields["tool"], kind)
    return made.prepend("thought", own.fields["thought"], str)


def _functions(given: Sequence[Callable[..., Any] | str], index: Any) -> list[Any]:
    """Return functions for the names of our own tools among them. Raises ProgramError."""
    if unknown := [o for o in given if isinstance(o, str) and o not in NAMED]:
        raise ProgramError(
            f"Agent: there is no tool {unknown[0]!r} of promptflow's own; it has "
            f"{', '.join(NAMED)}; give a function for any other"
        )
    named: dict[str, Callable[..., Any]] = {"calculate": calculate}
    if index is not None:
        named["search"] = search_tool(index)
        named["read"] = read_tool(named["search"])
    elif needs := [o for o in given if isinstance(o, str) and o not in named]:
        raise ProgramError(f"Agent: the tool {needs[0]!r} needs documents: give index=")
    if "read" in given and "search" not in given:
        raise ProgramError("Agent: the tool 'read' reads what 'search' finds: give both")
    return [named[one] if isinstance(one, str) else one for one in given]
