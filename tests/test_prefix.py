from __future__ import annotations

from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from promptflow.engine.cache.cells import CellLedger
from promptflow.engine.cache.prefix import PrefixTree, lower_bound
from promptflow.engine.sequence import common

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def slow_common(a: list[int], b: list[int]) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


@given(tokens, tokens, st.integers(0, 12))
def test_common_counts_equal_tokens_from_the_start(a, b, limit):
    assert common(a, b, limit) == min(limit, slow_common(a, b))
    assert common(a, a + b, 1 << 30) == len(a)


@given(st.lists(tokens))
def test_lower_bound_is_the_number_of_different_prefixes(prompts):
    trie = {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}
    assert lower_bound(prompts) == len(trie)


class Tree(RuleBasedStateMachine):
    """The tree against a dictionary from holders to what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.held: dict[int, list[int]] = {}

    @rule(tokens=tokens)
    def insert(self, tokens: list[int]) -> None:
        holder = len(self.held) and max(self.held) + 1
        self.tree.insert(holder, tokens)
        self.held[holder] = tokens

    @precondition(lambda self: self.held)
    @rule(data=st.data(), more=tokens)
    def insert_longer(self, data: st.DataObject, more: list[int]) -> None:
        holder = data.draw(st.sampled_from(sorted(self.held)))
        self.held[holder] = self.held[holder] + more
        self.tree.insert(holder, self.held[holder])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(self.held)))
        self.tree.remove(holder, self.held.pop(holder))

    @rule(tokens=tokens)
    def match(self, tokens: list[int]) -> None:
        reach = {holder: slow_common(held, tokens) for holder, held in self.held.items()}
        found = self.tree.match(tokens)
        assert [depth for depth, _ in found] == sorted({d for d, _ in found}, reverse=True)
        assert (found[0][0] if found else 0) == max(reach.values(), default=0)
        for depth, holders in found:
            assert holders == {holder for holder, far in reach.items() if far >= depth}

    @invariant()
    def nothing_is_left_that_nobody_holds(self) -> None:
        nodes = list(self.tree.nodes())
        assert all(node.holders and node.span for node in nodes)
        assert bool(nodes) == bool(self.held)


test_tree_agrees_with_a_dictionary = Tree.TestCase


class Ledger(RuleBasedStateMachine):
    """The ledger against lists of cell names, shared as a fork shares them."""

    CAPACITY = 40

    def __init__(self) -> None:
        super().__init__()
        self.ledger = CellLedger(self.CAPACITY)
        self.cells: dict[int, list[object]] = {number: [] for number in range(4)}

    @property
    def used(self) -> int:
        return len({id(cell) for cells in self.cells.values() for cell in cells})

    @rule(seq_id=st.integers(0, 3), count=st.integers(1, 10))
    def extend(self, seq_id: int, count: int) -> None:
        count = min(count, self.CAPACITY - self.used)
        self.ledger.extend(seq_id, count)
        self.cells[seq_id] += [object() for _ in range(count)]

    @rule(source=st.integers(0, 3), empty=st.integers(0, 3), end=st.integers(1, 20))
    def share(self, source: int, empty: int, end: int) -> None:
        if self.cells[source] and not self.cells[empty]:
            self.ledger.share(source, empty, end)
            self.cells[empty] = self.cells[source][:end]

    @rule(seq_id=st.integers(0, 3), start=st.integers(0, 20))
    def drop(self, seq_id: int, start: int) -> None:
        self.ledger.drop(seq_id, start)
        del self.cells[seq_id][start:]

    @invariant()
    def counts_agree(self) -> None:
        assert self.ledger.used == self.used
        for seq_id, cells in self.cells.items():
            assert self.ledger.length(seq_id) == len(cells)


test_ledger_agrees_with_lists_of_cells = Ledger.TestCase
