"""Concepts that return: trees that were retired at a drift alarm are kept, and tried again at later alarms.

1. At an alarm the tree is not removed but archived, if it was worth it: it is old enough, and it had been right more
   often than the most frequent class alone would be. Where the archive is full, the tree that was retired or used
   longest ago makes room. What is noted of it: when it was retired, its accuracy in its best time, and of which
   classes it was right.
2. The background tree (or an empty one) becomes the expert, as without an archive. A trial of :data:`TRIAL` instances
   begins, in which the archived trees predict every instance beside it, without learning.
3. At the end of the trial the best of the archived trees takes the expert's place if it was right more often by one
   standard error of the difference, and nearly as often as in its best time (within four standard errors, since a best
   value is biased upwards): so it is its concept that has returned. The fresh tree is removed.

Memory and time per instance are bounded by the size of the archive.
"""

# T trees that are experts, A archived trees, C classes

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled import trees
from moeapps.stream.compiled.adwin import reset_window
from moeapps.stream.compiled.jit import kernel, structref_class
from moeapps.stream.compiled.mixture_state import INSTANCES, NEWCOMER, REPLACE

__all__ = [
    "MAX_RETURNS",
    "TRIAL",
    "Archive",
    "archive_as_structref",
    "compare",
    "grow_archive",
    "new_archive",
    "retire",
]

TRIAL = 100
"""Instances of a trial."""

OLD_ENOUGH = 500.0
"""Instances that a tree has to have been an expert for, to be worth keeping."""

MEMORY = 500.0
"""Instances over which the accuracies that are noted are averaged."""

MAX_RETURNS = 256
"""Returns that are remembered; older ones are overwritten."""


class Archive(NamedTuple):
    """What is known of archived trees and of trials; the trees are the last A of the pool."""

    # experts
    steady: NDArray[np.float64]  # (T, 2) recent accuracy of the expert, and its best value
    share: NDArray[np.float64]  # (T, C, 2) recent weight of each class, and of what the expert got right of it
    left: NDArray[np.int64]  # (T,) instances left of the expert's trial
    right: NDArray[np.int64]  # (T,) what it got right in it, -1 without a trial
    # archived trees
    retired: NDArray[np.int64]  # (A,) instance at which the tree was retired, -1 for a free place
    used: NDArray[np.int64]  # (A,) instance at which it was retired or last was a trial's best
    origin: NDArray[np.int64]  # (A,) which expert it was
    accuracy: NDArray[np.float64]  # (A,) its accuracy in its best time
    where: NDArray[np.float64]  # (A, C) share of each class that it was right of, when it was retired
    rival: NDArray[np.int64]  # (T, A) what it got right in the trial of an expert
    # returns
    returns: NDArray[np.float64]  # (MAX_RETURNS, 5) instance, expert, retired, right of the trial: archived and fresh
    counters: NDArray[np.int64]  # (1,) number of returns


ArchiveRef = structref_class(Archive)


@kernel
def archive_as_structref(a):  # type: ignore[no-untyped-def]
    """The same arrays behind one pointer."""
    return ArchiveRef(*a)


def new_archive(experts: int, size: int, classes: int) -> Archive:
    """An empty archive."""

    def ints(*shape: int, fill: int = 0) -> NDArray[np.int64]:
        return np.full(shape, fill, dtype=np.int64)

    return Archive(
        steady=np.zeros((experts, 2)), share=np.zeros((experts, classes, 2)), left=ints(experts),
        right=ints(experts, fill=-1),
        retired=ints(size, fill=-1), used=ints(size), origin=ints(size), accuracy=np.zeros(size),
        where=np.zeros((size, classes)), rival=ints(experts, size), returns=np.zeros((MAX_RETURNS, 5)),
        counters=ints(1),
    )  # fmt: skip


def grow_archive(old: Archive, classes: int) -> Archive:
    """The same for more classes."""
    new = new_archive(len(old.left), len(old.retired), classes)
    new.share[:, : old.share.shape[1]] = old.share
    new.where[:, : old.where.shape[1]] = old.where
    return old._replace(share=new.share, where=new.where)


@kernel
def _first_place(p, a):  # type: ignore[no-untyped-def]
    """Where the archived trees begin among the places of the pool."""
    return p.place.shape[0] - a.retired.shape[0]


@kernel
def _note(a, e, age, y, right, classes):  # type: ignore[no-untyped-def]
    """Keep count of how often, and of which classes, an expert is right."""
    steady, share = a.steady[e], a.share[e]
    if age <= 1.0:
        steady[:] = 0.0
        share[:] = 0.0
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
def retire(a, p, m, s, e, classes):  # type: ignore[no-untyped-def]
    """Archive the tree of an expert (or remove it), put a fresh one in its place, and begin a trial."""
    t, now = p.trees, m.counters[INSTANCES]
    frequent, total = 0.0, 0.0
    for c in range(classes):
        frequent = max(frequent, a.share[e, c, 0])
        total += a.share[e, c, 0]
    if a.steady[e, 1] > frequent / max(total, 1.0):
        chosen = 0
        for k in range(1, a.retired.shape[0]):
            empty = a.retired[k] < 0 and a.retired[chosen] >= 0
            if empty or (a.used[k] < a.used[chosen] and (a.retired[chosen] >= 0) == (a.retired[k] >= 0)):
                chosen = k
        place = _first_place(p, a) + chosen
        trees.remove_tree(t, p.place[place])
        p.place[e], p.place[place] = p.place[place], p.place[e]
        a.retired[chosen], a.used[chosen], a.origin[chosen], a.accuracy[chosen] = now, now, e, a.steady[e, 1]
        for c in range(classes):
            a.where[chosen, c] = a.share[e, c, 1] / a.share[e, c, 0] if a.share[e, c, 0] > 0.0 else 0.0
        a.rival[:, chosen] = 0
    else:
        trees.remove_tree(t, p.place[e])
    background = s.n_experts + e
    if s.drift == REPLACE and t.root[p.place[background]] >= 0:
        p.place[e], p.place[background] = p.place[background], p.place[e]
    else:
        trees.new_tree(t, p.place[e], p.rng)
    a.steady[e, :] = 0.0
    a.share[e] = 0.0
    a.left[e], a.right[e] = TRIAL + 1, 0  # the votes on this instance were those of the retired tree
    a.rival[e, :] = 0


@kernel
def _end_trial(a, p, m, s, e):  # type: ignore[no-untyped-def]
    """Give an expert's place to the best of the archived trees, if it was better than the fresh one beyond noise."""
    best = 0
    for k in range(1, a.retired.shape[0]):
        if a.rival[e, k] > a.rival[e, best]:
            best = k
    theirs, ours = a.rival[e, best], a.right[e]
    if a.retired[best] < 0:
        return
    a.used[best] = m.counters[INSTANCES]
    q = (theirs + ours) / (2.0 * TRIAL)
    if theirs - ours <= np.sqrt(2.0 * TRIAL * q * (1.0 - q)):
        return
    before = a.accuracy[best]
    if theirs / TRIAL < before - 4.0 * np.sqrt(before * (1.0 - before) / TRIAL):
        return
    place = _first_place(p, a) + best
    trees.remove_tree(p.trees, p.place[e])
    p.place[e], p.place[place] = p.place[place], p.place[e]
    event = a.returns[a.counters[0] % MAX_RETURNS]
    event[0], event[1], event[2], event[3], event[4] = m.counters[INSTANCES], e, a.retired[best], theirs, ours
    a.counters[0] += 1
    a.retired[best] = -1
    a.rival[:, best] = 0
    m.recent[e], m.age[e] = theirs / TRIAL, NEWCOMER
    a.steady[e, 0], a.steady[e, 1] = theirs / TRIAL, before
    reset_window(m.windows, e)
    reset_window(m.windows, s.n_experts + e)
    background = s.n_experts + e
    if s.drift == REPLACE and p.trees.root[p.place[background]] >= 0:
        trees.remove_tree(p.trees, p.place[background])


@kernel
def compare(a, p, ts, m, s, x, y, votes, scratch, classes):  # type: ignore[no-untyped-def]
    """Once an instance has been learned: count who had been right of it, and end the trials that are over."""
    running = False
    for e in range(s.n_experts):
        right = trees.argmax(votes[e], classes) == y
        _note(a, e, m.age[e], y, 1.0 if right else 0.0, classes)
        if a.right[e] >= 0:
            a.left[e] -= 1
            if a.left[e] < TRIAL:
                running = True
                a.right[e] += 1 if right else 0
    if not running:
        return
    first = _first_place(p, a)
    for k in range(a.retired.shape[0]):
        if a.retired[k] < 0:
            continue
        trees.predict(p.trees, ts, trees.leaf_of(p.trees, p.place[first + k], x), x, scratch[0])
        if trees.argmax(scratch[0], classes) == y:
            for e in range(s.n_experts):
                if a.right[e] >= 0 and a.left[e] < TRIAL:
                    a.rival[e, k] += 1
    for e in range(s.n_experts):
        if a.right[e] >= 0 and a.left[e] == 0:
            _end_trial(a, p, m, s, e)
            a.right[e] = -1
