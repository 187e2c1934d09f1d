"""Which of several networks are trained to the end: successive halving by the score on validation nodes.

All networks take their steps together, each with an optimiser of its own. After some epochs only the better part goes
on (Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization", algorithm 1),
until its own validation score stops improving; each ends with its best weights. Everything is in ``state_dict``, so an
interrupted search continues where it was.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moeapps.graph.plan import Scores, Stage

__all__ = ["SearchPlan"]

FIRST_LOOK = 20
"""Epochs after which the first half is left behind."""


class SearchPlan:
    """Decides after each validation which networks train on.

    Parameters
    ----------
    names : sequence of str
        Networks that compete.
    kept : int
        How many of them are trained to the end.
    patience : int
        Epochs without improvement after which a network has its best weights.
    always : sequence of str, default=()
        Networks that are trained to the end in any case.

    Attributes
    ----------
    stage_name
        ``"search"`` or ``"finished"``.
    survivors : tuple of str
        Networks that were not left behind.
    champion : str
        The one with the best score; set at the end.
    """

    round = 0

    def __init__(self, names: Sequence[str], kept: int, patience: int, always: Sequence[str] = ()) -> None:
        self.names, self.kept, self.patience, self.always = tuple(names), kept, patience, tuple(always)
        self.cuts = halvings(len(names) - len(always), kept)
        self.stages = {"search": Stage(self.names, "mix")}
        self.stage_name = "search"
        self.champion = self.names[-1]
        self.survivors = self.names
        self.epochs: dict[str, int] = dict.fromkeys(self.names, 0)
        self.best_scores: Scores = {}
        self._best_states: dict[str, dict[str, Tensor]] = {}
        self._waits: dict[str, int] = dict.fromkeys(self.names, 0)
        self._epoch = 0
        self._started = False

    @property
    def stage(self) -> Stage:
        """The networks that train in the next epoch."""
        active = () if self.finished else tuple(name for name in self.survivors if self._waits[name] < self.patience)
        return Stage(active, "mix")

    @property
    def most_kept(self) -> int:
        """Networks that are trained to the end, at most."""
        return min([len(self.names) - len(self.always), *self.cuts.values()]) + len(self.always)

    @property
    def started(self) -> bool:
        """Whether :meth:`start` was called, in this run or before it was interrupted."""
        return self._started

    @property
    def finished(self) -> bool:
        """Whether every network has its best weights."""
        return self.stage_name == "finished"

    def start(self, scores: Scores, model: Any) -> None:
        """Record the state before the first step, so that no network ends below it; this may be left out."""
        self._started = True
        for name in self.names:
            self._note(name, scores, model)

    def update(self, scores: Scores, model: Any, last: bool = False) -> bool:
        """Take the scores of an epoch; leave networks behind, or end.

        Parameters
        ----------
        scores : Scores
            Validation score of each network of :attr:`stage` as it is now.
        model
            ``model.part(name)`` is a network; its weights are replaced by the best ones at the end.
        last : bool, default=False
            Whether no epoch will follow.

        Returns
        -------
        bool
            Whether weights were replaced.
        """
        self._epoch += 1
        for name in self.stage.parts:
            self.epochs[name] += 1
            if name not in self.best_scores or scores[name] > self.best_scores[name]:
                self._note(name, scores, model)
            else:
                self._waits[name] += 1
        if self._epoch in self.cuts:
            self._cut(self.cuts[self._epoch])
        if not self.stage.parts or last:
            self.finish(model)
        return self.finished

    def finish(self, model: Any) -> None:
        """End the search now: every network gets its best weights."""
        if self.finished:
            return
        self._cut(self.kept)  # all may have stopped improving before the last cut
        for name, state in self._best_states.items():
            model.part(name).load_state_dict(state)
        scored = [name for name in self.survivors if name in self.best_scores]
        self.champion = max(scored, key=lambda name: self.best_scores[name], default=self.champion)
        self.stage_name = "finished"
        self._best_states = {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that must survive an interruption, as plain values and tensors."""
        return {name.lstrip("_"): value for name, value in vars(self).items() if name not in _ARGUMENTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        for name in vars(self):
            if name not in _ARGUMENTS:
                setattr(self, name, state[name.lstrip("_")])

    def cost(self, work: dict[str, int]) -> float:
        """Least work of the search, in trainings of the costliest network over as many epochs as it has at least.

        Parameters
        ----------
        work : dict of str to int
            Work of one step of each network, in any unit.
        """
        ordered = sorted((work[name] for name in self.names if name not in self.always), reverse=True)
        epochs = max(self.cuts, default=0) + self.patience
        done, before = 0.0, 0
        for epoch, kept in self.cuts.items():
            done += (epoch - before) * sum(ordered)
            ordered, before = ordered[:kept], epoch
        done += (epochs - before) * sum(ordered) + epochs * sum(work[name] for name in self.always)
        return done / (epochs * max(work.values()))

    def _cut(self, kept: int) -> None:
        rivals = [name for name in self.survivors if name not in self.always]
        if len(rivals) <= kept:
            return
        by_score = sorted(rivals, key=lambda name: self.best_scores[name], reverse=True)  # ties: the first one
        chosen = {*by_score[:kept], *self.always}
        self.survivors = tuple(name for name in self.survivors if name in chosen)

    def _note(self, name: str, scores: Scores, model: Any) -> None:
        self.best_scores[name], self._waits[name] = scores[name], 0
        state = model.part(name).state_dict()
        self._best_states[name] = {key: tensor.detach().clone() for key, tensor in state.items()}


_ARGUMENTS = ("names", "kept", "patience", "always", "cuts", "stages")


def halvings(count: int, kept: int) -> dict[int, int]:
    """After which epochs how many networks go on: halves at 20, 40, 80, ... until ``kept`` are left."""
    cuts, epoch = {}, FIRST_LOOK
    while count > kept:
        count = max(kept, (count + 1) // 2)
        cuts[epoch] = count
        epoch *= 2
    return cuts
