"""Which sequences hold which prefix: a radix tree over token ids.

Pure: knows token ids and sequence numbers, and nothing of llama.cpp. The tree indexes what
sequences *will* hold as soon as they are admitted, so that requests which arrive together wait for
one prefill instead of repeating it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from promptflow.engine.sequence import common


@dataclass(slots=True)
class Node:
    """An edge of the radix tree: the tokens on it and the sequences that pass through it."""

    span: list[int]
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)
    holders: set[int] = field(default_factory=set)


class PrefixTree:
    """A radix tree over token ids whose nodes know the sequences that hold them."""

    def __init__(self) -> None:
        """Make an empty tree."""
        self.root = Node([], None)

    def insert(self, holder: int, tokens: list[int]) -> None:
        """Mark ``holder`` as holding ``tokens``; a holder may be inserted again, longer."""
        node, position = self.root, 0
        while position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None:
                child = Node(tokens[position:], node)
                node.children[tokens[position]] = child
            shared = common(child.span, tokens[position : position + len(child.span)], 1 << 30)
            if shared < len(child.span):
                child = self._split(child, shared)
            child.holders.add(holder)
            node, position = child, position + shared

    def _split(self, node: Node, at: int) -> Node:
        """Cut an edge in two and return its upper half."""
        parent = node.parent
        assert parent is not None
        upper = Node(node.span[:at], parent, {node.span[at]: node}, set(node.holders))
        parent.children[node.span[0]] = upper
        node.span, node.parent = node.span[at:], upper
        return upper

    def remove(self, holder: int, tokens: list[int]) -> None:
        """Forget that ``holder`` holds ``tokens`` and prune edges that nobody holds."""
        node, position = self.root, 0
        path = []
        while position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None or holder not in child.holders:
                break
            path.append(child)
            node, position = child, position + len(child.span)
        for node in reversed(path):
            node.holders.discard(holder)
            if not node.holders and node.parent is not None:
                del node.parent.children[node.span[0]]

    def match(self, tokens: list[int]) -> list[tuple[int, set[int]]]:
        """Return, deepest first, how far ``tokens`` are held and by which sequences."""
        found: list[tuple[int, set[int]]] = []
        node, position = self.root, 0
        while position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None:
                break
            shared = common(child.span, tokens[position : position + len(child.span)], 1 << 30)
            position += shared
            found.append((position, child.holders))
            if shared < len(child.span):
                break
            node = child
        found.reverse()
        return found

    def nodes(self) -> Iterator[Node]:
        """Yield every node below the root."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


def lower_bound(prompts: Sequence[Sequence[int]]) -> int:
    """Return what a perfect prefix cache prefills for ``prompts``: the tokens of their trie."""
    total = 0
    previous: Sequence[int] = ()
    for prompt in sorted(map(list, prompts)):
        total += len(prompt) - common(list(previous), list(prompt), 1 << 30)
        previous = prompt
    return total
