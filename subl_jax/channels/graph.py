"""Finite sets of texts as minimal automata over bytes."""


class Graph:
    """A minimal automaton without cycles: equal states are one, and a state comes after all those it leads to.

    Source: Daciuk et al. 2000, Incremental construction of minimal acyclic finite-state automata, section 2.
    """

    def __init__(self) -> None:
        self.states: list[tuple[bool, dict[int, int]]] = []
        self._ids: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}

    def add(self, final: bool, edges: dict[int, int]) -> int:
        """The state that is `final` or not, and where each byte of `edges` leads; -1 when it leads to no text."""
        edges = {byte: edges[byte] for byte in sorted(edges) if edges[byte] >= 0}
        if not final and not edges:
            return -1
        state = self._ids.setdefault((final, tuple(edges.items())), len(self.states))
        if state == len(self.states):
            self.states.append((final, edges))
        return state

    def word(self, word: bytes, after: int) -> int:
        """The state from which `word` leads to the state `after`."""
        for byte in reversed(word):
            after = self.add(False, {byte: after})
        return after
