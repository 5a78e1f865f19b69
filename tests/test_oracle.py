"""Whatever runs beside it, is cached, forked, preempted or faulted: a request gets its own text.

``FakeModel`` computes logits from the cells that a sequence really holds, so that a wrong copy,
position or cut shows in the text. The reference decodes each request by itself and computes the
whole history again for every token.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from promptflow.engine.cache.prefix import lower_bound
from promptflow.engine.loop.decoder import Decoder
from promptflow.engine.loop.lengths import Lengths
from promptflow.engine.model.constraint import Constraints
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import (
    Alternative,
    Beam,
    Choice,
    Completion,
    Fill,
    Json,
    Regex,
    Request,
    Sampling,
    Slot,
    Substring,
    Text,
    TokenLogprob,
)
from promptflow.engine.slot import sampling
from promptflow.engine.slot.deltas import Deltas
from promptflow.engine.slot.filling import Filling
from promptflow.engine.slot.job import SEAM, Tools
from promptflow.engine.stream import Feed
from promptflow.errors import CapacityError, ContextOverflow, EngineError

WORDS = ("ab", "b.", ". the", "x\ny", "c\n", "the end", "é", "\n\n", "aa", "a-b-c-d")
WORDS_LIKELY = tuple((257 + number, 7.0) for number in range(len(WORDS)))
SEAMS = 200  # tokens that stops have cut in two and that were computed again
NO_PROMPT_TOKENS = tuple((token, -100.0) for token in range(4))


MEMORIES = [("dense", 0), ("dense", 0), ("hybrid", 0), ("windowed", 1), ("windowed", 12)]


def model(
    cells: int = 4096, batch: int = 32, sequences: int = 24, memory: tuple[str, int] = ("dense", 0)
) -> FakeModel:
    kind, window = memory
    return FakeModel(cells, batch, sequences, words=WORDS, memory=kind, window=window)


class Reference:
    """Fills slots with no cache: every token from the logits of the whole history."""

    def __init__(self) -> None:
        self.model = model()
        self.tools = Tools(self.model)

    def logits(self, tokens: list[int]):
        for start in range(0, len(tokens), self.model.batch):
            chunk = tokens[start : start + self.model.batch]
            positions = list(range(start, start + len(chunk)))
            last = [False] * (len(chunk) - 1) + [True]
            code = self.model.decode(chunk, positions, [0] * len(chunk), last)
            assert code == 0
        self.model.drop(0, 0)
        return self.model.logits(len(chunk) - 1)

    def fills(self, request: Request, cells: int = 4096) -> dict[str, Fill]:
        slots = [part for part in request.parts if isinstance(part, Slot)]
        texts = self.tools.prompts.before_slots(request.parts)
        tokens: list[int] = []
        fills: dict[str, Fill] = {}
        for number, (slot, text) in enumerate(zip(slots, texts, strict=True)):
            tokens += text
            if slot.fits:
                slot = self.fitted(slot, slots[number + 1 :], texts[number + 1 :], tokens, cells)
            rng = sampling.generator(request.seed, number)
            filling = Filling(slot, self.tools.vocabulary, self.tools.constraints, rng, tokens)
            filling.open()
            if slot.beam is not None:
                filling, fills[slot.name] = self.search(filling, tokens, slot.beam)
            elif slot.is_weighed:
                filling, fills[slot.name] = self.weigh(filling, tokens, rng)
            else:
                while filling.finish is None:
                    filling.take(self.logits(tokens + filling.tokens))
                fills[slot.name] = filling.fill()
            tokens += filling.tokens[: filling.kept]
            tokens += self.tools.prompts.continuation(filling.rest.decode("utf-8", "replace"))
        return fills

    def fitted(self, slot: Slot, slots: list[Slot], texts: list, tokens: list, cells: int) -> Slot:
        """Take the largest bound with which the rest of the request still has room."""
        for bound in range(slot.max_tokens, 0, -1):
            length, peak, before = len(tokens), 0, None
            parts = [
                (replace(slot, max_tokens=bound, fits=False, least=1), []),
                *zip(slots, texts, strict=True),
            ]
            for each, text in parts:
                length += len(text) + (SEAM if before and before.stop else 0)
                peak = max(peak, length + each.need * (each.beam.width if each.beam else 1))
                length, before = length + each.need, each
            if max(length, peak) <= cells:
                return parts[0][0]
        raise AssertionError("it was not to be admitted")

    def search(self, opened: Filling, tokens: list[int], beam: Beam) -> tuple[Filling, Fill]:
        """Go on until nothing lives, every step from scratch."""
        live, ended = [(0.0, 0, opened)], []
        if opened.finish is not None:
            live, ended = ended, live
        while live:
            found = [
                (logprob + pick.logprob, steps + 1, filling, pick)
                for logprob, steps, filling in live
                for pick in filling.picks(self.logits(tokens + filling.tokens), beam.width)
            ]
            live = []
            for logprob, steps, filling, pick in sorted(found, key=lambda one: -one[0]):
                if len(live) < beam.width:
                    twin = filling.fork()
                    twin.put(pick)
                    (live if twin.finish is None else ended).append((logprob, steps, twin))

        def score(one: tuple[float, int, Filling]) -> float:
            return float(one[0] / max(1, one[1]) ** beam.length_penalty)

        ended = sorted(ended, key=score, reverse=True)[: beam.width]
        texts = tuple(Alternative(one[2].written, one[0], score(one)) for one in ended)
        best = ended[0][2]
        return best, replace(best.fill(), generated=0, alternatives=texts)

    def weigh(self, opened: Filling, tokens: list[int], rng) -> tuple[Filling, Fill]:
        """Follow every token of every option."""
        found: dict[str, tuple[float, Filling]] = {}
        options = opened.slot.constraint.options

        def follow(logprob: float, filling: Filling) -> None:
            if filling.finish is not None:
                if filling.finish == "length" and filling.written not in options:
                    return
                known, shortest = found.get(filling.written, (-np.inf, filling))
                shortest = min(shortest, filling, key=lambda one: len(one.tokens))
                found[filling.written] = float(np.logaddexp(known, logprob)), shortest
                return
            for pick in filling.picks(self.logits(tokens + filling.tokens), 1000, within=True):
                twin = filling.fork()
                twin.put(pick)
                follow(logprob + pick.logprob, twin)

        follow(0.0, opened)
        weights = np.array([weight for weight, _ in found.values()], dtype=np.float32)
        chosen = list(found)[sampling.choose(weights, opened.slot.sampling, rng)]
        best = found[chosen][1]
        return best, Fill(chosen, best.finish)


REFERENCE = Reference()


class Readers:
    """Reads every job's text while it is written, as worker and engine do for a stream."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.deltas: dict[int, Deltas] = {}
        self.feeds: dict[int, Feed] = {}

    def open(self, key: int) -> None:
        self.feeds[key] = Feed()
        job = self.decoder.job(key)
        if job is not None:
            self.deltas[key] = Deltas(job)

    def read(self) -> None:
        for key, deltas in self.deltas.items():
            for slot, text in deltas.fresh():
                assert text
                self.feeds[key].tell(slot, text)

    def check(self, key: int, completion: Completion) -> None:
        """What was told, joined by slot, is what the fills hold, and came in their order."""
        feed = self.feeds[key]
        feed.end(completion)
        joined: dict[str, str] = {}
        while (delta := feed.events.get_nowait()).completion is None:
            assert delta.slot == list({**joined, delta.slot: ""})[-1], "back to an earlier slot"
            joined[delta.slot] = joined.get(delta.slot, "") + delta.text
        assert joined == {name: fill.text for name, fill in completion.fills.items() if fill.text}


def drain(
    decoder: Decoder, readers: Readers | None = None
) -> dict[int, Completion | tuple[TokenLogprob, ...]]:
    outcomes = {}
    for _ in range(20_000):
        if not decoder.busy:
            return outcomes
        outcomes |= dict(decoder.step())
        if readers is not None:
            readers.read()
        check_cells(decoder)
    raise AssertionError("the decoder does not come to an end")


def run(decoder: Decoder, requests: list[Request]) -> list[Completion]:
    outcomes = {}
    readers = Readers(decoder)
    for key, request in enumerate(requests):
        outcomes |= dict(decoder.submit(key, request))
        readers.open(key)
    outcomes |= drain(decoder, readers)
    for key in range(len(requests)):
        readers.check(key, outcomes[key])
    return [outcomes[key] for key in range(len(requests))]


def check_cells(decoder: Decoder) -> None:
    """The model holds what the scheduler believes: the same tokens, in as many cells."""
    scheduler, fake = decoder.scheduler, decoder.model
    held = {sequence.seq_id: sequence.tokens[: sequence.computed] for sequence in scheduler.running}
    assert not held.keys() & scheduler.cache.retained.keys()
    held |= scheduler.cache.retained
    for seq_id in range(fake.max_sequences):
        assert fake.held_tokens(seq_id) == held.get(seq_id, []), f"sequence {seq_id}"
    assert scheduler.cache.cells.used == fake.used_cells()
    assert fake.used_cells() <= fake.cells


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    typical_p=st.sampled_from([1.0, 0.6]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    logit_bias=st.sampled_from([(), WORDS_LIKELY]),
)
constraints = st.sampled_from(
    [
        None,
        None,
        None,
        Choice(("a", "ab", "abc", "the end")),
        Choice(("only this",)),
        Regex(r"[a-c]{2,6}"),
        Regex(r"x\ny|[ab]+"),
        Json('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'),
        Json('{"type": "array", "items": {"enum": ["a", "ab"]}, "minItems": 1, "maxItems": 3}'),
        Substring(("a-b-c-d the end é",)),
    ]
)
slots = st.builds(
    Slot,
    name=st.just("?"),
    constraint=constraints,
    max_tokens=st.integers(1, 12),
    stop=st.sampled_from([(), ("b",), (".", "\n"), ("th",), ("y",)]),
    stop_tokens=st.sampled_from([(), (97, 98)]),
    lead=st.sampled_from(["", " "]),
    sampling=samplings,
    logprobs=st.sampled_from([None, 0, 2]),
    ignore_eos=st.booleans(),
)
searched = st.builds(
    Slot,
    name=st.just("?"),
    constraint=constraints,
    max_tokens=st.integers(1, 6),
    stop=st.sampled_from([(), ("b",), (".", "\n")]),
    lead=st.sampled_from(["", " "]),
    ignore_eos=st.booleans(),
    beam=st.builds(Beam, st.integers(1, 4), st.sampled_from([0.0, 1.0, 2.0, -0.5])),
)
fitting = st.builds(
    Slot,
    name=st.just("?"),
    constraint=constraints,
    max_tokens=st.sampled_from([6, 30, 70]),
    stop=st.sampled_from([(), ("th",)]),
    ignore_eos=st.booleans(),
    fits=st.just(True),
    least=st.integers(1, 6),
)
fitting |= st.builds(
    Slot,
    name=st.just("?"),
    max_tokens=st.sampled_from([6, 20]),
    ignore_eos=st.booleans(),
    beam=st.builds(Beam, st.integers(1, 4)),
    fits=st.just(True),
    least=st.integers(1, 6),
)
weighed = st.builds(
    Slot,
    name=st.just("?"),
    constraint=st.sampled_from([("a", "ab", "abc", "the end"), ("only this",), ("x", "y")]).map(
        lambda options: Choice(options, weighed=True)
    ),
    lead=st.sampled_from(["", " "]),
)
texts = st.builds(
    Text,
    st.text("abc \n", max_size=4).flatmap(
        lambda end: st.sampled_from(["", "aaaa", "aaab", "aaab the end", "x\ny" * 9]).map(
            lambda stem: stem + end
        )
    ),
    st.booleans(),
)


@st.composite
def requests(draw: st.DrawFn, kinds=slots | slots | searched | weighed | fitting) -> Request:
    parts: list[Text | Slot] = draw(st.lists(texts, max_size=2))
    for number in range(draw(st.integers(1, 3))):
        parts.append(replace(draw(kinds), name=f"s{number}"))
        parts += draw(st.lists(texts, max_size=1))
    return Request(tuple(parts), seed=draw(st.integers(0, 3)))


class Decoding(RuleBasedStateMachine):
    """Random programs over submit, step, cancel and fault, on pools from tiny to ample."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[int, Request] = {}
        self.outcomes: dict[int, Completion] = {}
        self.excused: set[int] = set()  # too large for the pool even alone, or cancelled
        self.decoder: Decoder | None = None

    @precondition(lambda self: not self.decoder)
    @rule(
        cells=st.sampled_from([60, 150, 400, 4000]),
        batch=st.sampled_from([1, 3, 16, 32]),
        sequences=st.integers(1, 6),
        running=st.integers(1, 6),
        lookup=st.booleans(),
        first=st.sampled_from([1, 4, 256]),
        memory=st.sampled_from(MEMORIES),
    )
    def begin(
        self,
        cells: int,
        batch: int,
        sequences: int,
        running: int,
        lookup: bool,
        first: int,
        memory: tuple[str, int],
    ) -> None:
        fake = model(cells, batch, sequences, memory)
        self.decoder = Decoder(fake, max_running=running, pass_rows=1000.0 * lookup)
        self.decoder.scheduler._lengths = Lengths(first)
        self.readers = Readers(self.decoder)

    @precondition(lambda self: self.decoder)
    @rule(batch=st.lists(requests(), min_size=1, max_size=4), twice=st.booleans())
    def submit(self, batch: list[Request], twice: bool) -> None:
        for request in batch * (1 + twice):
            key = len(self.requests)
            self.requests[key] = request
            try:
                self.outcomes |= dict(self.decoder.submit(key, request))
            except (ContextOverflow, CapacityError) as error:
                self.outcomes[key] = Completion(error=error)
                self.excused.add(key)
            self.readers.open(key)

    @precondition(lambda self: self.decoder)
    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.decoder.busy:
                self.outcomes |= dict(self.decoder.step())
                self.readers.read()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.requests)))
        if key not in self.outcomes:
            self.excused.add(key)
        self.outcomes |= dict(self.decoder.cancel(key))

    @precondition(lambda self: self.decoder)
    @rule(code=st.sampled_from([1, 1, 2, -1, -2]), ahead=st.integers(1, 3))
    def fault(self, code: int, ahead: int) -> None:
        fake = self.decoder.model
        fake.fail[fake.decodes + ahead] = code

    @invariant()
    def cells_agree(self) -> None:
        if self.decoder:
            check_cells(self.decoder)

    def teardown(self) -> None:
        if not self.decoder:
            return
        self.outcomes |= drain(self.decoder, self.readers)
        faulted = bool(self.decoder.model.fail)
        for key, request in self.requests.items():
            self.readers.check(key, self.outcomes[key])
            cells = self.decoder.model.cells
            again = faulted or self.decoder.stats().preempted > 0
            again |= self.decoder.model.info.memory != "dense"
            check(self.outcomes[key], request, key in self.excused, faulted, cells, again)
        assert self.decoder.model.refused == 0
        scheduler = self.decoder.scheduler
        assert not scheduler.running
        assert not scheduler.waiting
        for move in scheduler.cache.evict_all():
            self.decoder.model.drop(move.seq_id, move.start)
        assert scheduler.cache.cells.used == self.decoder.model.used_cells() == 0
        assert not list(scheduler.cache.tree.nodes())


def comparable(completion: Completion, request: Request) -> dict[str, Fill]:
    """The fills, less the work that a search has cost and the weights of options."""
    fills = dict(completion.fills)
    for part in request.parts:
        if isinstance(part, Slot) and part.beam:
            fills[part.name] = replace(fills[part.name], generated=0)
        if isinstance(part, Slot) and part.is_weighed:
            fill = fills[part.name]
            assert abs(sum(np.exp(a.logprob) for a in fill.alternatives) - 1) < 1e-6
            fills[part.name] = replace(fill, generated=0, logprob=0.0, alternatives=())
    return fills


def check(
    completion: Completion, request: Request, excused: bool, faulted: bool, cells: int, again: bool
) -> None:
    error = completion.error
    if error is not None:
        assert isinstance(error, EngineError)
        assert excused or (faulted and type(error) in (EngineError, CapacityError)), error
        return
    assert comparable(completion, request) == REFERENCE.fills(request, cells)
    usage = completion.usage
    assert usage.generated == sum(fill.generated for fill in completion.fills.values())
    assert usage.forced == sum(fill.forced for fill in completion.fills.values())
    assert again or usage.prefilled + usage.reused <= usage.prompt + len(completion.fills)


Decoding.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
test_any_program_decodes_as_if_alone = Decoding.TestCase


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(requests(), min_size=1, max_size=12),
    st.booleans(),
    st.booleans(),
    st.sampled_from(MEMORIES),
)
def test_a_batch_decodes_as_if_alone(batch, batch_invariant, lookup, memory):
    fake = model(memory=memory)
    decoder = Decoder(fake, batch_invariant=batch_invariant, pass_rows=1000.0 * lookup)
    for completion, request in zip(run(decoder, batch), batch, strict=True):
        assert comparable(completion, request) == REFERENCE.fills(request)
        assert completion.usage.reused == 0 or not batch_invariant


greedy = st.builds(
    Slot,
    name=st.just("?"),
    max_tokens=st.sampled_from([3, 20, 70]),
    stop=st.sampled_from([(), ("zz",)]),
    ignore_eos=st.just(True),
    beam=st.sampled_from([None, None, Beam(1), Beam(3)]),
)
greedy |= greedy.map(lambda slot: replace(slot, fits=True, least=3))


@settings(max_examples=250, deadline=None, derandomize=True)
@given(requests(greedy), st.integers(30, 150))
def test_slots_that_fit_take_exactly_what_the_context_leaves(request, cells):
    """The reference tries each bound, from the largest on, against the rest of the request."""
    decoder = Decoder(model(cells))
    try:
        decoder.submit(0, request)
    except (ContextOverflow, CapacityError):
        return
    [completion] = drain(decoder).values()
    assert completion.error is None
    assert comparable(completion, request) == REFERENCE.fills(request, cells)


class Roomy(FakeModel):
    """Is never asked to hold more than it has cells for."""

    def decode(self, *batch) -> int:
        code = super().decode(*batch)
        assert code == 0
        return code


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(requests(fitting | searched | weighed), min_size=4, max_size=10),
    st.sampled_from([90, 150, 250]),
    st.integers(2, 24),
    st.sampled_from([1, 8, 256]),
    st.booleans(),
)
def test_answers_outgrow_a_small_pool_and_nothing_is_lost(batch, cells, running, first, lookup):
    """Bounds of the whole pool, samples side by side, and estimates that are far too low."""
    fake = Roomy(cells, batch=16, sequences=24, words=WORDS)
    decoder = Decoder(fake, max_running=running, pass_rows=1000.0 * lookup)
    decoder.scheduler._lengths = Lengths(first)
    batch = [request for request in batch for _ in range(2) if fits(request, cells)]
    for completion, request in zip(run(decoder, batch), batch, strict=True):
        assert completion.error is None
        assert comparable(completion, request) == REFERENCE.fills(request, cells)


prompts = st.lists(
    st.sampled_from(["", "\x01" * 30, "\x01" * 30 + "\x02" * 7, "\x03"]).flatmap(
        lambda stem: st.text("\x01\x02\x03", min_size=1, max_size=5).map(lambda end: stem + end)
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(prompts, st.sampled_from([1, 4, 16]), st.sampled_from([1, 5, 32]))
def test_what_arrives_together_is_prefilled_once(texts, max_running, batch):
    """Duplicates included. Generated text shares no token with prompts, so it adds no prefix."""
    slot = Slot("s", max_tokens=3, sampling=Sampling(logit_bias=NO_PROMPT_TOKENS))
    decoder = Decoder(model(batch=batch), max_running=max_running)
    completions = run(decoder, [Request((Text(text), slot)) for text in texts])
    prefilled = sum(completion.usage.prefilled for completion in completions)
    assert prefilled == lower_bound([list(text.encode()) for text in texts])
    assert decoder.stats().prefilled == prefilled


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(requests(slots), min_size=1, max_size=8), st.sampled_from([150, 4000]))
def test_every_prompt_token_is_computed_or_reused_once(batch, cells):
    """The last slot is sampled, so that everything before it is needed.

    Where a slot ends right before another, a token may be computed again for its logits.
    """
    end = Slot("last", max_tokens=1)
    batch = [Request((*r.parts, end), r.seed) for r in batch]
    batch = [request for request in batch if fits(request, cells)]
    decoder = Decoder(model(cells))
    for request, completion in zip(batch, run(decoder, batch), strict=True):
        usage = completion.usage
        assert usage.prompt == sum(map(len, REFERENCE.tools.prompts.before_slots(request.parts)))
        again = usage.prefilled + usage.reused - usage.prompt
        assert 0 <= again <= sum(isinstance(part, Slot) for part in request.parts[:-1])
    stats = decoder.stats()
    assert stats.preempted == 0
    assert stats.prefilled <= decoder.model.decoded_tokens
    assert decoder.model.decoded_tokens <= stats.prefilled + stats.generated + stats.forced + SEAMS


def fits(request: Request, cells: int) -> bool:
    try:
        Decoder(model(cells)).submit(0, request)
    except (ContextOverflow, CapacityError):
        return False
    return True


def hard_requests(count: int) -> list[Request]:
    """Requests with shared prompts, two slots, and stops that cut words."""
    slot = Slot("s", max_tokens=6, stop=("b",), sampling=Sampling(1.0, logit_bias=WORDS_LIKELY))
    return [
        Request((Text("aaab the end" * (1 + n % 3)), slot, Text(" c "), replace(slot, name="t")), n)
        for n in range(count)
    ]


def test_500_random_cancellations_leave_no_cell_behind():
    """Of requests that wait, prefill, generate, search or weigh, in a cache that is too small."""
    rng = np.random.default_rng(5)
    decoder = Decoder(model(1000, batch=16), max_running=5, pass_rows=1000.0)
    readers = Readers(decoder)
    batch = hard_requests(900)
    batch[::5] = [Request((Text("x\ny" * 60), *r.parts), r.seed) for r in batch[::5]]
    beam = Slot("beam", max_tokens=5, beam=Beam(3))
    weighed = Slot("weighed", Choice(("ab", "ac", "b"), weighed=True))
    batch[1::5] = [Request((*r.parts[:1], beam, weighed, *r.parts[1:])) for r in batch[1::5]]
    outcomes: dict[int, Completion] = {}
    cancels = 0
    for key, request in enumerate(batch):
        finished = decoder.submit(key, request)
        readers.open(key)
        for _ in range(rng.integers(0, 3)):
            finished += decoder.step()
            readers.read()
            check_cells(decoder)
        unfinished = [k for k in range(key + 1) if decoder.job(k)]
        if unfinished and cancels < 500 and rng.random() < 0.7:
            finished += decoder.cancel(int(rng.choice(unfinished)))
            cancels += 1
        for ended, completion in finished:
            assert ended not in outcomes, "each ends once"
            outcomes[ended] = completion
    outcomes |= drain(decoder, readers)
    assert sorted(outcomes) == list(range(900))
    cancelled = [completion for completion in outcomes.values() if completion.error is not None]
    assert len(cancelled) == 500
    assert {bool(completion.usage.generated) for completion in cancelled} == {False, True}
    for key, completion in outcomes.items():
        readers.check(key, completion)
        if completion.error is None:
            assert comparable(completion, batch[key]) == REFERENCE.fills(batch[key])
    for move in decoder.scheduler.cache.evict_all():
        decoder.model.drop(move.seq_id, move.start)
    assert decoder.model.used_cells() == decoder.scheduler.cache.cells.used == 0
    assert sorted(decoder.scheduler.cache._free) == list(range(decoder.model.max_sequences))


def test_scores_are_the_logprobs_of_the_whole_history():
    before, continuations = "aaab the end", ["ab", "", "x\nyc\n", "ab"]
    decoder = Decoder(model(batch=5), max_running=3)
    for key, continuation in enumerate(continuations):
        if continuation:
            decoder.score(key, [Text(before)], continuation)
    outcomes = drain(decoder)
    prompts = REFERENCE.tools.prompts
    for key, continuation in enumerate(continuations):
        history = prompts.tokens([Text(before)])
        expected = []
        for token in prompts.continuation(continuation):
            value, *standing = sampling.standing(REFERENCE.logits(history), token)
            expected.append(TokenLogprob(prompts.text(token), token, value, (), *standing))
            history.append(token)
        assert outcomes.get(key, ()) == tuple(expected)
    with pytest.raises(EngineError, match="nothing to score"):
        decoder.score(9, [Text(before)], "")


def test_the_reference_uses_the_vocabulary_of_words():
    assert isinstance(REFERENCE.tools.constraints, Constraints)
    assert any(token > 256 for token in REFERENCE.tools.prompts.continuation("a the end"))


def test_a_search_that_needs_every_sequence_does_without_the_prefix_that_one_of_them_holds():
    first = Request((Slot("s0", max_tokens=1),))
    search = Request((Slot("s0", max_tokens=1, beam=Beam(2)),))
    decoder = Decoder(model(cells=60, batch=1, sequences=2), max_running=1)
    for completion, request in zip(run(decoder, [first, search]), [first, search], strict=True):
        assert completion.error is None
        assert comparable(completion, request) == REFERENCE.fills(request)
