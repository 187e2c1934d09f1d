"""The order in which Mowst's parts are trained, and when each stage ends: a small state machine without torch loops.

Each stage trains some of the parts (experts and gates) until its validation score stops improving, and then goes back
to the best state it has seen, the one before it included. Across stages a *champion* is kept: the candidate (one expert
alone, or the mixture) with the best validation score; training ends with it. Everything is in ``state_dict``, so an
interrupted training continues in the middle of a stage.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from moeapps.graph.mowst import Mowst, Variant

__all__ = ["Pretrain", "Scores", "Stage", "TrainingPlan", "stages_of"]

Pretrain = Literal["none", "weak", "strong", "both"]
PRETRAIN = ("none", "weak", "strong", "both")
Score = tuple[float, ...]
Scores = dict[str, Score]
"""Validation score of each expert alone and of ``"mix"``; larger is better, ties go to the next entry."""


@dataclass(frozen=True)
class Stage:
    """What a stage trains (experts by name, their gates as ``<name>_gate``), and the score that ends it."""

    parts: tuple[str, ...]
    watch: str


def stages_of(names: tuple[str, ...]) -> dict[str, Stage]:
    """All stages for experts of these names, weak first, strong last."""
    gates = tuple(f"{name}_gate" for name in names[:-1])
    return {
        **{f"pretrain_{name}": Stage((name,), name) for name in names},
        "fit_gate": Stage(gates, "mix"),
        "joint": Stage((*names, *gates), "mix"),
        **{f"{name}_turn": Stage((name, f"{name}_gate"), "mix") for name in names[:-1]},
        f"{names[-1]}_turn": Stage((names[-1],), "mix"),
    }


class TrainingPlan:
    """Decides after each validation whether to go on, to begin another stage, or to finish.

    Parameters
    ----------
    names : tuple of str
        Names of the experts, weak first, strong last.
    variant : Variant
        ``"mowst"`` gives each expert its turn, in rounds; ``"mowst_star"`` has one joint stage.
    pretrain : Pretrain
        Which experts are first trained alone; ``"both"`` means all of them.
    warm_gate : bool
        Whether the gates are fitted to the pretrained experts before anything else moves.
    patience : int
        Epochs without improvement that end a stage.
    round_patience : int
        Rounds (one turn each) without improvement that end the training.

    Attributes
    ----------
    stage_name
        Current stage, or ``"finished"``.
    round
        Number of the current round, from 0.
    champion
        Name of an expert or ``"mix"``: the candidate used to predict.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        variant: Variant,
        pretrain: Pretrain,
        warm_gate: bool,
        patience: int,
        round_patience: int,
    ) -> None:
        self.names, self.patience, self.round_patience = names, patience, round_patience
        self.stages = stages_of(names)
        self.turns = [f"{name}_turn" for name in names]
        order = {"none": (), "weak": ("weak",), "strong": ("strong",), "both": names}[pretrain]
        self.pretraining = [f"pretrain_{expert}" for expert in order]
        self.after = (["fit_gate"] if warm_gate else []) + (["joint"] if variant == "mowst_star" else self.turns[:1])
        self.stage_name = (self.pretraining + self.after)[0]
        self.round = 0
        self.champion = "mix"
        self._started = False
        self._wait = 0
        self._rounds_wait = 0
        self._round_score: Score | None = None
        self._best_scores: Scores = {}
        self._best_state: dict[str, Tensor] = {}
        self._champion_score: Score | None = None
        self._champion_state: dict[str, Tensor] = {}

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.stages[self.stage_name]

    @property
    def started(self) -> bool:
        """Whether :meth:`start` was called, in this run or before it was interrupted."""
        return self._started

    @property
    def finished(self) -> bool:
        """Whether training is over."""
        return self.stage_name == "finished"

    def start(self, scores: Scores, model: Any) -> None:
        """Record the state before the first step, so that training never ends below it."""
        self._started = True
        if not self.pretraining:
            self._note((*reversed(self.names), "mix"), scores, model)
        self._enter(self.stage_name, scores, model)

    def update(self, scores: Scores, model: Any, last: bool = False) -> bool:
        """Take the scores of an epoch; restore, move on or finish as needed.

        Parameters
        ----------
        scores : Scores
            Validation scores of the model as it is now.
        model : Mowst
            The model; its state is replaced when a stage ends.
        last : bool, default=False
            Whether no epoch will follow: then the champion is restored now.

        Returns
        -------
        bool
            Whether the model's state was replaced.
        """
        watch = self.stage.watch
        if scores[watch] > self._best_scores[watch]:
            self._best_scores, self._best_state, self._wait = scores, _copy(model), 0
        else:
            self._wait += 1
        if self._wait < self.patience and not last:
            return False
        if last:
            self.finish(model)
        else:
            model.load_state_dict(self._best_state)
            self._end_stage(model)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that must survive an interruption, as plain values and tensors."""
        return {name.lstrip("_"): value for name, value in vars(self).items() if name not in _ARGUMENTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        for name in vars(self):
            if name not in _ARGUMENTS:
                setattr(self, name, state[name.lstrip("_")])

    def finish(self, model: Any) -> None:
        """End training now: restore the champion."""
        if not self.finished:
            model.load_state_dict(self._best_state)
            alone = self.stage_name in self.pretraining or self.stage_name == "joint"
            self._note((*reversed(self.names), "mix") if alone else ("mix",), self._best_scores, model)
            self._finish(model)

    def _enter(self, name: str, scores: Scores, model: Mowst) -> None:
        self.stage_name = name
        self._best_scores, self._best_state, self._wait = scores, _copy(model), 0

    def _end_stage(self, model: Mowst) -> None:
        # 1. Pretraining: one expert after another; then all candidates compete, and the next stage begins.
        # 2. Fitting the gates, then the joint stage (Mowst*), which ends the training, or the turns (Mowst).
        # 3. After the last turn of a round: another round, unless `round_patience` rounds brought no improvement.
        scores, name = self._best_scores, self.stage_name
        if name in self.pretraining and name != self.pretraining[-1]:
            return self._enter(self.pretraining[self.pretraining.index(name) + 1], scores, model)
        if name in self.pretraining:
            self._note((*reversed(self.names), "mix"), scores, model)
            return self._enter(self.after[0], scores, model)
        # an expert that answers as well as the mixture at its best is named, and answers alone
        self._note((*reversed(self.names), "mix") if name == "joint" else ("mix",), scores, model)
        if name == "fit_gate":
            return self._enter(self.after[1], scores, model)
        if name == "joint":
            return self._finish(model)
        if name != self.turns[-1]:
            return self._enter(self.turns[self.turns.index(name) + 1], scores, model)
        if self._round_score is None or scores["mix"] > self._round_score:
            self._round_score, self._rounds_wait = scores["mix"], 0
        else:
            self._rounds_wait += 1
        if self._rounds_wait >= self.round_patience:
            return self._finish(model)
        self.round += 1
        return self._enter(self.turns[0], scores, model)

    def _note(self, candidates: tuple[str, ...], scores: Scores, model: Mowst) -> None:
        """Make the present model the champion in one of these forms, if its score is the best so far."""
        for name in candidates:
            if self._champion_score is None or scores[name] > self._champion_score:
                self.champion, self._champion_score = name, scores[name]
                self._champion_state = _copy(model)
                before = self.names[: self.names.index(name)] if name != "mix" else ()
                for gate in self.names[:-1]:
                    forced = 0.0 if gate in before else 1.0 if gate == name else float("nan")
                    self._champion_state[f"gates.{gate}.forced"].fill_(forced)

    def _finish(self, model: Mowst) -> None:
        model.load_state_dict(self._champion_state)
        self.stage_name = "finished"
        self._best_state, self._champion_state = {}, {}


_ARGUMENTS = ("names", "stages", "turns", "patience", "round_patience", "pretraining", "after")


def _copy(model: Mowst) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
