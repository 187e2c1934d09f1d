"""Concepts that return: retired trees are kept, and take a place again as soon as they are better than an expert.

1. At a drift alarm the tree is not removed but archived, if it was worth it: it is old enough, and it had been right
   more often than the most frequent class alone would be. Where the archive is full, a tree of the concept that has
   most trees in it makes room. What is noted of it: when it was retired, its accuracy in its best time, and of which
   classes it was right. The background tree (or an empty one) becomes the expert, as without an archive.
2. Archived trees predict every instance, without learning. Once the best of them has been right more often over about
   the last :data:`SHORT` instances than the worst expert, by :data:`NOISE` standard errors of the difference, the two
   trees change places. No alarm is needed, so a concept that returns is found sooner than ADWIN finds that the old one
   has gone, and trees go into the archive before they have unlearned what they knew.

Memory and time per instance are bounded by the size of the archive.
"""

# T trees that are experts, A archived trees, C classes

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled import trees
from moeapps.stream.compiled.adwin import reset_window
from moeapps.stream.compiled.jit import kernel
from moeapps.stream.compiled.mixture_state import INSTANCES, REPLACE
from moeapps.stream.compiled.references import referable

__all__ = [
    "MAX_RETURNS",
    "SHORT",
    "Archive",
    "compare",
    "grow_archive",
    "new_archive",
    "retire",
    "succeed",
]

SHORT = 50.0
"""Instances over which archived trees and experts are compared."""

ENOUGH = 20.0
"""Instances that both have to have predicted before."""

NOISE = 3.0
"""Standard errors by which an archived tree has to be better."""

OLD_ENOUGH = 500.0
"""Instances that a tree has to have been an expert for, to be worth keeping."""

TOGETHER = 1000
"""Trees that were retired within so many instances of each other are taken to know the same concept."""

MEMORY = 500.0
"""Instances over which the accuracies that are noted are averaged."""

MAX_RETURNS = 256
"""Returns that are remembered; older ones are overwritten."""


@referable
class Archive(NamedTuple):
    """What is known of archived trees; the trees themselves are the last A of the pool."""

    # experts
    steady: NDArray[np.float64]  # (T, 2) recent accuracy of the expert, and its best value
    share: NDArray[np.float64]  # (T, C, 2) recent weight of each class, and of what the expert got right of it
    short: NDArray[np.float64]  # (T, 2) accuracy of the expert over the last SHORT instances, and how many it has seen
    # archived trees
    retired: NDArray[np.int64]  # (A,) instance at which the tree was retired, -1 for a free place
    origin: NDArray[np.int64]  # (A,) which expert it was
    accuracy: NDArray[np.float64]  # (A,) its accuracy in its best time
    where: NDArray[np.float64]  # (A, C) share of each class that it was right of, when it was retired
    now: NDArray[np.float64]  # (A, 2) as short, since it was retired
    # returns
    returns: NDArray[np.float64]  # (MAX_RETURNS, 5) instance, expert, retired, recent accuracy: its own, the expert's
    counters: NDArray[np.int64]  # (1,) number of returns


def new_archive(experts: int, size: int, classes: int) -> Archive:
    """An empty archive."""

    def ints(*shape: int, fill: int = 0) -> NDArray[np.int64]:
        return np.full(shape, fill, dtype=np.int64)

    return Archive(
        steady=np.zeros((experts, 2)), share=np.zeros((experts, classes, 2)), short=np.zeros((experts, 2)),
        retired=ints(size, fill=-1), origin=ints(size), accuracy=np.zeros(size), where=np.zeros((size, classes)),
        now=np.zeros((size, 2)), returns=np.zeros((MAX_RETURNS, 5)), counters=ints(1),
    )  # fmt: skip


def grow_archive(old: Archive, classes: int) -> Archive:
    """The same for more classes."""
    new = new_archive(len(old.short), len(old.retired), classes)
    new.share[:, : old.share.shape[1]] = old.share
    new.where[:, : old.where.shape[1]] = old.where
    return old._replace(share=new.share, where=new.where)


@kernel
def _note(a, e, age, y, right, classes):  # type: ignore[no-untyped-def]
    """Keep count of how often, and of which classes, an expert is right."""
    steady, share = a.steady[e], a.share[e]
    if age <= 1.0:
        steady[0], steady[1] = 0.0, 0.0
        for c in range(classes):
            share[c, 0], share[c, 1] = 0.0, 0.0
    rate = max(1.0 / max(age, 1.0), 1.0 / MEMORY)
    steady[0] += rate * (right - steady[0])
    if age >= OLD_ENOUGH:
        steady[1] = max(steady[1], steady[0])
    for c in range(classes):
        share[c, 0] *= 1.0 - 1.0 / MEMORY
        share[c, 1] *= 1.0 - 1.0 / MEMORY
    share[y, 0] += 1.0
    share[y, 1] += right


@kernel
def _count(average, right):  # type: ignore[no-untyped-def]
    """Add an instance to an average over the last SHORT."""
    average[1] += 1.0
    average[0] += max(1.0 / max(average[1], 1.0), 1.0 / SHORT) * (right - average[0])


@kernel
def _worth(a, e, classes):  # type: ignore[no-untyped-def]
    """Whether an expert had been right more often than the most frequent class alone would be."""
    frequent, total = 0.0, 0.0
    for c in range(classes):
        frequent = max(frequent, a.share[e, c, 0])
        total += a.share[e, c, 0]
    return a.steady[e, 1] > frequent / max(total, 1.0)


@kernel
def _least(a):  # type: ignore[no-untyped-def]
    """A free place of the archive, or that of the worst of the trees of which most were retired at about one time."""
    chosen, most = 0, -1
    for k in range(a.retired.shape[0]):
        if a.retired[k] < 0:
            return k
        together = 0
        for other in range(a.retired.shape[0]):
            if abs(a.retired[other] - a.retired[k]) <= TOGETHER:
                together += 1
        if together > most or (together == most and a.accuracy[k] < a.accuracy[chosen]):
            chosen, most = k, together
    return chosen


@kernel
def _place(a, p, k):  # type: ignore[no-untyped-def]
    """Place among those of the pool that a place of the archive is."""
    return p.place.shape[0] - a.retired.shape[0] + k


@kernel
def _keep(a, p, m, e, k, classes):  # type: ignore[no-untyped-def]
    """Exchange the tree of an expert with that of a place of the archive, and note what it was."""
    place = _place(a, p, k)
    p.place[e], p.place[place] = p.place[place], p.place[e]
    a.retired[k], a.origin[k], a.accuracy[k] = m.counters[INSTANCES], e, a.steady[e, 1]
    for c in range(classes):
        a.where[k, c] = a.share[e, c, 1] / a.share[e, c, 0] if a.share[e, c, 0] > 0.0 else 0.0
        a.share[e, c, 0], a.share[e, c, 1] = 0.0, 0.0
    # counted from here on, as that of a fresh tree: what it got right before a drift must not speak for it
    a.now[k, 0], a.now[k, 1] = 0.0, 0.0
    for i in range(2):
        a.steady[e, i] = 0.0
        a.short[e, i] = 0.0


@kernel
def succeed(p, s, e):  # type: ignore[no-untyped-def]
    """Let the background tree, or an empty one, take the place of an expert whose tree is gone."""
    background = s.n_experts + e
    if s.drift == REPLACE and p.trees.root[p.place[background]] >= 0:
        p.place[e], p.place[background] = p.place[background], p.place[e]
    else:
        trees.new_tree(p.trees, p.place[e], p.rng)


@kernel
def retire(a, p, m, s, e, classes):  # type: ignore[no-untyped-def]
    """Archive the tree of an expert (or remove it), and put its background tree or an empty one in its place."""
    t = p.trees
    if _worth(a, e, classes):
        chosen = _least(a)
        trees.remove_tree(t, p.place[_place(a, p, chosen)])
        _keep(a, p, m, e, chosen, classes)
    else:
        trees.remove_tree(t, p.place[e])
    a.short[e, 1] = -1.0  # the vote on this instance was that of the retired tree
    succeed(p, s, e)


@kernel
def _exchange(a, p, m, s, e, k, classes):  # type: ignore[no-untyped-def]
    """Give an expert's place to an archived tree."""
    returned, accuracy = a.accuracy[k], a.now[k, 0]
    event = a.returns[a.counters[0] % MAX_RETURNS]
    event[0], event[1], event[2] = m.counters[INSTANCES], e, a.retired[k]
    event[3], event[4] = accuracy, a.short[e, 0]
    a.counters[0] += 1
    worth = _worth(a, e, classes)
    seen = a.now[k, 1]
    _keep(a, p, m, e, k, classes)
    if not worth:
        trees.remove_tree(p.trees, p.place[_place(a, p, k)])
        a.retired[k] = -1
    a.steady[e, 0], a.steady[e, 1] = accuracy, returned
    a.short[e, 0], a.short[e, 1] = accuracy, seen
    m.recent[e], m.age[e] = accuracy, SHORT
    reset_window(m.windows, e)
    reset_window(m.windows, s.n_experts + e)
    background = s.n_experts + e
    if s.drift == REPLACE and p.trees.root[p.place[background]] >= 0:
        trees.remove_tree(p.trees, p.place[background])


@kernel
def compare(a, p, ts, m, s, x, y, votes, scratch, classes):  # type: ignore[no-untyped-def]
    """Once an instance has been learned: count who had been right of it, and let the best archived tree return."""
    worst = -1
    for e in range(s.n_experts):
        right = 1.0 if trees.argmax(votes[e], classes) == y else 0.0
        _note(a, e, m.age[e], y, right, classes)
        _count(a.short[e], right)
        if a.short[e, 1] >= ENOUGH and (worst < 0 or a.short[e, 0] < a.short[worst, 0]):
            worst = e
    best = -1
    for k in range(a.retired.shape[0]):
        if a.retired[k] < 0:
            continue
        trees.predict(p.trees, ts, trees.leaf_of(p.trees, p.place[_place(a, p, k)], x), x, scratch[0])
        _count(a.now[k], 1.0 if trees.argmax(scratch[0], classes) == y else 0.0)
        if a.now[k, 1] >= ENOUGH and (best < 0 or a.now[k, 0] > a.now[best, 0]):
            best = k
    if worst < 0 or best < 0:
        return
    q = 0.5 * (a.now[best, 0] + a.short[worst, 0])
    variance = q * (1.0 - q) * (1.0 / min(a.now[best, 1], 2.0 * SHORT) + 1.0 / min(a.short[worst, 1], 2.0 * SHORT))
    if a.now[best, 0] - a.short[worst, 0] > NOISE * np.sqrt(variance):
        _exchange(a, p, m, s, worst, best, classes)
