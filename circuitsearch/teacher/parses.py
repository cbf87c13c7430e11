"""Scores of document parses: how close a predicted JSON tree is to the true one.

Donut (Kim et al., arXiv 2111.15664) reads a receipt into nested dictionaries and lists. Two scores
compare such parses: **nTED accuracy**, one minus the tree edit distance over the size of the gold
tree, which rewards a nearly right text in the right place, and **field F1**, which counts exact
(key, value) matches. Both follow the evaluator that Donut was published with; where that divides by
zero (nothing to find) the value is stated below.

The tree edit distance is Zhang and Shasha's (SIAM J. Comput. 18(6), 1989): dynamic programming
over pairs of *keyroots*, the highest vertex of each leftmost path.

A decoder writes a parse as a *tag sequence*: `<s_key>value</s_key>`, list items set apart by
`<sep/>`, a choice among fixed words as `<word/>`. `parse_of` reads it back, as Donut does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rapidfuzz.distance import Levenshtein

from circuitsearch.core.errors import DataError

__all__ = ["Tree", "field_f1", "nted_accuracy", "parse_of", "tree_distance"]

_SEPARATOR = "<sep/>"
_OPENING = re.compile(r"<s_([^<>]*)>", re.IGNORECASE)
_SET_APART = re.compile(rf"\s*{_SEPARATOR}")
_DEEPEST = 32  # nested keys; what lies deeper is read as text (a broken decoder can nest for ever)


@dataclass(frozen=True)
class Tree:
    """A labelled ordered tree; `leaf` marks text, as opposed to a key."""

    label: str
    leaf: bool = False
    children: list[Tree] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Cost of inserting or removing this label: its length for text, 1 for a key."""
        return len(self.label) if self.leaf else 1


def parse_of(text: str) -> Any:
    """Read a tag sequence into the parse it stands for.

    A key whose closing tag is missing is dropped and what follows it is read on, as in Donut, and
    the case of tags does not count. Every `<word/>` is read as its word; Donut does so with words
    of its vocabulary only.

    Args:
        text: E.g. `<s_menu><s_nm>cake</s_nm><sep/><s_nm>tea</s_nm></s_menu>`.

    Returns:
        Dictionaries, lists and texts, e.g. `{"menu": [{"nm": "cake"}, {"nm": "tea"}]}`;
        `{"text_sequence": text}` when there is no key in it.
    """
    items = _items(text, _DEEPEST)
    if not items:
        return {"text_sequence": text.strip()} if text.strip() else {}
    return items[0] if len(items) == 1 else items


def _items(text: str, depth: int) -> list[dict[str, Any]]:
    """Return the dictionaries of a tag sequence: one, or as many as `<sep/>` sets apart."""
    items: list[dict[str, Any]] = [{}]
    place = 0
    while found := _OPENING.search(text, place):
        key, place = found[1], found.end()
        closing = re.compile(rf"</s_{re.escape(key)}>", re.IGNORECASE).search(text, place)
        if closing is None:
            continue
        items[-1][key] = _value(text[place : closing.start()].strip(), depth - 1)
        place = closing.end()
        if apart := _SET_APART.match(text, place):
            items.append({})
            place = apart.end()
    return [item for item in items if item]


def _value(text: str, depth: int) -> Any:
    """Return what stands between a key's tags: a parse, a text, or several of one."""
    inside = _items(text, depth) if depth > 0 and _OPENING.search(text) else []
    values: list[Any] = list(inside) or [_word(part.strip()) for part in text.split(_SEPARATOR)]
    return values[0] if len(values) == 1 else values


def _word(text: str) -> str:
    """Return a text, or the word of a choice tag: `<yes/>` -> `yes`."""
    choice = re.fullmatch(r"<([^<>/]+)/>", text)
    return choice[1] if choice else text


def nted_accuracy(prediction: object, gold: object) -> float:
    """Return Donut's accuracy of a document parse: 1 - TED(prediction, gold) / TED({}, gold).

    Args:
        prediction: The parse: dictionaries, lists, texts and numbers.
        gold: The true parse.

    Returns:
        A number in [0, 1]. Key order does not count, the order of list items does. With an empty
        gold parse, 1 for an empty prediction and 0 for any other.
    """
    ours, theirs = _tree("<root>", _tidy(prediction)), _tree("<root>", _tidy(gold))
    whole = tree_distance(_tree("<root>", {}), theirs)
    if whole == 0:
        return 0.0 if ours.children else 1.0
    return max(0.0, 1 - tree_distance(ours, theirs) / whole)


def field_f1(predictions: Sequence[object], golds: Sequence[object]) -> float:
    """Return Donut's field F1 over a corpus of parses: TP / (TP + (FP + FN) / 2).

    Fields are (dotted key, value) pairs, matched as multisets within one parse and counted over
    the corpus. A corpus without any field on either side scores 1.

    Raises:
        DataError: If the lists differ in length.
    """
    if len(predictions) != len(golds):
        raise DataError(
            f"field F1: got {len(predictions)} predictions for {len(golds)} gold parses; "
            "give one prediction per parse, in the same order"
        )
    hits = wrong = 0
    for prediction, gold in zip(predictions, golds, strict=True):
        ours, theirs = Counter(_fields(_tidy(prediction))), Counter(_fields(_tidy(gold)))
        common = (ours & theirs).total()
        hits += common
        wrong += ours.total() + theirs.total() - 2 * common
    return hits / (hits + wrong / 2) if hits + wrong else 1.0


def _tidy(data: object) -> Any:
    """Return a parse with keys sorted by (length, name), values in lists, and no empty parts.

    This is the normal form of Donut's evaluator: texts are stripped, numbers become text (a value
    of 0 is empty, the text "0" is not), and a list that mixes texts and dictionaries keeps its
    texts only.
    """
    if not data:
        return {}
    if isinstance(data, dict):
        kept: dict[str, Any] = {}
        for key in sorted(data, key=lambda key: (len(str(key)), str(key))):
            value = _tidy(data[key])
            if value:
                kept[str(key)] = value if isinstance(value, list) else [value]
        return kept
    if isinstance(data, list):
        if all(isinstance(item, dict) for item in data):
            return [item for item in map(_tidy, data) if item]
        # bool is no number here, as in the original's exact type test
        return [
            text for item in data if type(item) in {str, int, float} and (text := str(item).strip())
        ]
    text = str(data).strip()
    return [text] if text else []


def _fields(data: Any, key: str = "") -> list[tuple[str, str]]:
    """Return the (dotted key, value) pairs of a tidy parse."""
    if isinstance(data, dict):
        inside = ((f"{key}.{name}" if key else name, value) for name, value in data.items())
        return [pair for name, value in inside for pair in _fields(value, name)]
    if isinstance(data, list):
        return [pair for item in data for pair in _fields(item, key)]
    return [(key, data)]


def _tree(label: str, data: Any) -> Tree:
    """Return a tidy parse as a tree: keys and "<subtree>" items inside, texts as leaves."""
    if isinstance(data, dict):
        return Tree(label, children=[_tree(key, value) for key, value in data.items()])
    items = [
        _tree("<subtree>", item) if isinstance(item, dict) else Tree(item, leaf=True)
        for item in data
    ]
    return Tree(label, children=items)


def _relabel(a: Tree, b: Tree) -> int:
    """Return the cost of turning one label into another."""
    if a.leaf and b.leaf:
        return Levenshtein.distance(a.label, b.label)
    if a.leaf or b.leaf:
        return 1 + len(a.label if a.leaf else b.label)
    return int(a.label != b.label)


class _Postorder:
    """A tree's vertices in postorder, as Zhang and Shasha number them."""

    def __init__(self, root: Tree) -> None:
        self.trees: list[Tree] = []
        self.leftmost: list[int] = []  # postorder index of the leftmost leaf below each vertex
        self._walk(root)
        last = {left: index for index, left in enumerate(self.leftmost)}
        self.keyroots = sorted(last.values())  # the highest vertex of every leftmost path

    def _walk(self, tree: Tree) -> int:
        lefts = [self._walk(child) for child in tree.children]
        left = lefts[0] if lefts else len(self.trees)
        self.trees.append(tree)
        self.leftmost.append(left)
        return left


def tree_distance(first: Tree, second: Tree) -> int:
    """Return the least cost of turning one ordered tree into the other (Zhang-Shasha).

    Removing a vertex hands its children to its parent. Time is the product of sizes and depths.
    """
    a, b = _Postorder(first), _Postorder(second)
    swap = [[_relabel(x, y) for y in b.trees] for x in a.trees]
    distance = [[0] * len(b.trees) for _ in a.trees]
    for i in a.keyroots:
        for j in b.keyroots:
            _forest_distances(a, b, i, j, swap, distance)
    return distance[-1][-1]


def _forest_distances(
    a: _Postorder, b: _Postorder, i: int, j: int, swap: list[list[int]], distance: list[list[int]]
) -> None:
    """Fill `distance` for the subtrees whose leftmost paths end in keyroots i and j."""
    top, left = a.leftmost[i], b.leftmost[j]
    # forest[x][y]: distance of the first x vertices from `top` on to the first y from `left` on
    forest = [[0] * (j - left + 2) for _ in range(i - top + 2)]
    for x in range(1, len(forest)):
        forest[x][0] = forest[x - 1][0] + a.trees[top + x - 1].size
    for y in range(1, len(forest[0])):
        forest[0][y] = forest[0][y - 1] + b.trees[left + y - 1].size
    for x in range(1, len(forest)):
        p = top + x - 1
        for y in range(1, len(forest[0])):
            q = left + y - 1
            whole = a.leftmost[p] == top and b.leftmost[q] == left
            if whole:
                matched = forest[x - 1][y - 1] + swap[p][q]
            else:
                matched = forest[a.leftmost[p] - top][b.leftmost[q] - left] + distance[p][q]
            removed = forest[x - 1][y] + a.trees[p].size
            inserted = forest[x][y - 1] + b.trees[q].size
            forest[x][y] = min(matched, removed, inserted)
            if whole:
                distance[p][q] = forest[x][y]
