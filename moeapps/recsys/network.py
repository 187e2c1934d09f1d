"""Embeddings and a model together: encoded rows in, one output per task."""

# Shapes: N rows, R histories of N / R neighbouring rows each, T tasks, S scenarios, E experts, L entries of a sequence,
# P width of the profile, dim width of an embedding

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moeapps.recsys.attention import DIN, AWMoE, distinct, drop_behaviour, for_each, root_sum
from moeapps.recsys.catalogue import ItemCatalogue
from moeapps.recsys.encoder import FIRST, Rows, TableEncoder
from moeapps.recsys.features import FeatureEmbedding
from moeapps.recsys.home import HoME
from moeapps.recsys.item_neighbours import ItemNeighbours
from moeapps.recsys.multigate import PLE, AdaTT, MMoE, MultiTaskModel, SharedBottom
from moeapps.recsys.packing import padding_costs
from moeapps.recsys.prior import LabelPrior
from moeapps.recsys.sasrec import SASRec
from moeapps.recsys.scenarios import STAR, PEPNet

__all__ = [
    "MULTI_TASK_MODELS",
    "SEQUENCE_MODELS",
    "MultiTaskNetwork",
    "RankingConfig",
    "SequenceNetwork",
    "scenario_numbers",
    "settings_of_0_1",
]

MULTI_TASK_MODELS: dict[str, Any] = {
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "cgc": lambda dim, num_tasks, **options: PLE(dim, num_tasks, num_levels=1, **options),
    "ple": PLE,
    "adatt": AdaTT,
    "home": HoME,
    "star": STAR,
    "pepnet": PEPNet,
}
"""Multi-task models by name."""

SEQUENCE_MODELS: dict[str, Any] = {"din": DIN, "aw_moe": AWMoE, "sasrec": SASRec}
"""Models of a user's behaviour, for one binary target, by name."""


def settings_of_0_1(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of DIN or AW-MoE that 0.1 saved, with those that it did not have as it trained then."""
    options = {"dropout": 0.0, **(arguments.get("options") or {})}
    added = {"label_prior": False, "item_similarity": False, "embedding_decay": 0.0, "history_encoder": None}
    added["item_neighbours"] = False
    return {"gate": "sum", **added, **arguments, "options": options}


@dataclass(frozen=True)
class RankingConfig:
    """Network, losses and optimiser of a ranker.

    Parameters
    ----------
    model : str, default="home"
        ``"shared_bottom"``, ``"mmoe"``, ``"cgc"``, ``"ple"``, ``"adatt"`` or ``"home"``; with a ``scenario`` also
        ``"star"`` or ``"pepnet"``; for one binary target and a history ``"din"``, ``"aw_moe"`` or ``"sasrec"``.
    options : dict, optional
        Further arguments of the model (``num_experts``, ``expert``, ``tower``, ``dropout``, ...). The ``dropout`` of
        DIN and AW-MoE is 0.2 here unless it is given. PEPNet's ``personal`` is a list of
        sparse columns: user and item; by default those named like ids, or all of them if there is none.
    groups : dict or "scenario", optional
        For HoME: name of a group to the names of its targets, every target once. One group of all by default.
        ``"scenario"`` gives each scenario a group with heads of its own for every target.
    products : dict, optional
        Target to the target that it presupposes, both binary, as buying presupposes a click (ESMM, Ma et al., SIGIR
        2018): the probability of the first is its tower's times that of the second, so that both towers learn on all
        rows.
    task_weights : dict, optional
        Weight of a target's loss, at least 0; 1 for the others.
    positive_weight : dict, optional
        Weight of a binary target's positive rows, at least 0; 1 for the others.
    embedding_dim : int, default=8
        Width of a category's embedding.
    sparse_gradients : bool, default=False
        Whether the gradient of the embeddings holds only the rows of the batch, for tables of millions of categories.
        ``sparse_optimizer`` is then what trains.
    sparse_optimizer : {"adagrad", "adam"}, default="adagrad"
        What trains with sparse gradients: Adagrad, or AdamW that moves only the embeddings of the batch
        (:class:`~moeapps.core.optimizers.LazyAdamW`), which learns as fast as without sparse gradients.
    unknown_rate : float, default=0.02
        Probability, in [0, 1), with which training replaces a category by the unseen one, so that its embedding is
        trained too.
    lr : float, default=1e-3
        Learning rate of the optimiser, above 0.
    weight_decay : float, default=1e-5
        Weight decay; embeddings, biases and norms have none.
    embedding_decay : float, default=0.0
        Decay of the embeddings of a batch's ids, which is stronger the rarer an id is (DIN's mini-batch aware
        regularisation; :class:`~moeapps.recsys.embedding_decay.EmbeddingDecay`): an id that no batch has twice shrinks
        by about ``lr * embedding_decay`` of itself in an epoch. 0 for none.
    contrastive_weight : float, default=0.0
        Weight of AW-MoE's contrastive loss on the gate (lambda in the paper); 0 for none.
    user : str, optional
        Sparse column of the users: rows of one user are not each other's negatives in the contrastive loss. Without
        it every row counts as a user.
    mask_probability : float, default=0.2
        Probability, in [0, 1), with which the second view of the contrastive loss drops a behaviour.
    temperature : float, default=0.1
        Temperature of the contrastive loss, above 0.
    gate : {"softmax", "mean", "sum"}, default="softmax"
        How AW-MoE's gate adds up what the behaviours say; ``"sum"`` is the paper's, which grows with the history. See
        :class:`AWMoE`.
    label_prior : bool, default=True
        Whether DIN, AW-MoE and SASRec begin at what counting says: a number per candidate (and per ``user``), added to
        the logit and learned, that begins at the log odds of its labels in training.
    item_similarity : bool, default=True
        Whether DIN, AW-MoE and SASRec add to the logit how similar the candidate is to the history: the sum of the
        products of its embedding with the entries', over the root of their number (FISM, Kabbur et al., KDD 2013). It
        learns what the nearest items say. Not in the papers of the three.
    item_neighbours : bool, default=True
        Whether DIN and AW-MoE, trained on implicit feedback, add what the nearest items say: the sum of the cosines of
        the candidate to the entries, by the users that items have in common (Sarwar et al., WWW 2001). Each validation
        sets its weight beside the logit by a logistic regression, at 0 where it brings nothing beyond noise, and
        training goes on without it. Not in the papers of the two; without validation events it is 0.
    history_encoder : {"sasrec"}, optional
        For DIN and AW-MoE: self-attention over the history, whose output is added to the entries before the candidate
        attends to them. ``options={"history_options": {"layers": 2}}`` sets its ``layers`` (1), ``heads`` (2, of which
        ``embedding_dim`` must be a multiple), ``dropout`` (0.1) and ``max_len`` (200). By default there is none.
    scenario : str, optional
        Sparse column whose categories are scenarios (country, surface, age group): what ``"star"``, ``"pepnet"`` and
        ``groups="scenario"`` are built on. To the other models it is a feature like any other. Metrics are told per
        scenario. A row of an unseen or missing one is predicted by the shared weights.
    task_weighting : {"fixed", "uncertainty"}, default="fixed"
        ``"uncertainty"`` learns a weight for each target from its noise (Kendall et al., CVPR 2018), beside
        ``task_weights``. ``val/loss`` is the sum with the fixed weights either way.
    gradient_surgery : {"pcgrad", "aligned_mtl"}, optional
        For several targets: how gradients that point against each other are added up on the parameters that targets
        share (PCGrad, Yu et al., NeurIPS 2020; Aligned-MTL, Senushkin et al., CVPR 2023), by ``moeapps[tasks]``. A step
        has a backward pass per target then. Not with ``sparse_gradients`` or 16-bit floats that are scaled
        ("16-mixed").
    """

    model: str = "home"
    options: dict[str, Any] | None = None
    groups: dict[str, list[str]] | Literal["scenario"] | None = None
    products: dict[str, str] | None = None
    task_weights: dict[str, float] | None = None
    positive_weight: dict[str, float] | None = None
    embedding_dim: int = 8
    sparse_gradients: bool = False
    sparse_optimizer: str = "adagrad"
    unknown_rate: float = 0.02
    lr: float = 1e-3
    weight_decay: float = 1e-5
    embedding_decay: float = 0.0
    contrastive_weight: float = 0.0
    user: str | None = None
    mask_probability: float = 0.2
    temperature: float = 0.1
    gate: Literal["softmax", "mean", "sum"] = "softmax"
    label_prior: bool = True
    item_similarity: bool = True
    item_neighbours: bool = True
    history_encoder: Literal["sasrec"] | None = None
    scenario: str | None = None
    task_weighting: Literal["fixed", "uncertainty"] = "fixed"
    gradient_surgery: Literal["pcgrad", "aligned_mtl"] | None = None


class MultiTaskNetwork(nn.Module):
    """The concatenated features of a row, then a multi-task model.

    Parameters
    ----------
    embedding : FeatureEmbedding
        Encoded rows to ``(N, d)``.
    model : MultiTaskModel
        ``(N, d)`` to ``(N, T)``.
    products : dict, optional
        Number of a task to the number of the task that it presupposes, without circles; see :class:`RankingConfig`.
    scenario : int, optional
        Number of the sparse column with the scenarios, for a model that takes ``(N,)`` scenarios beside ``(N, d)``.
    head_names : list of str, optional
        Names of the model's heads in a diagnosis, where they are not the tasks'.
    """

    # Defaults of what a pickle of 0.1 lacks
    scenario: int | None = None
    head_names: list[str] | None = None

    def __init__(
        self,
        embedding: FeatureEmbedding,
        model: MultiTaskModel,
        products: Mapping[int, int] | None = None,
        scenario: int | None = None,
        head_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.embedding, self.model = embedding, model
        self.products = dict(products or {})
        self.scenario, self.head_names = scenario, head_names

    def forward(self, rows: Rows) -> Tensor:
        """Outputs ``(N, T)``."""
        scenario = () if self.scenario is None else (scenario_numbers(rows, self.scenario),)
        outputs: Tensor = self.model(self.embedding(rows), *scenario)
        if not self.products:
            return outputs
        columns = list(outputs.unbind(1))
        return torch.stack([self._product(columns, t) for t in range(len(columns))], dim=1)

    def _product(self, logits: list[Tensor], task: int) -> Tensor:
        r"""Logit of :math:`\sigma(a) \sigma(b)`, which is :math:`-\log(e^{-a} + e^{-b} + e^{-a-b})`."""
        if task not in self.products:
            return logits[task]
        # In logits, not probabilities, whose product would underflow and whose loss would need another form
        a, b = logits[task], self._product(logits, self.products[task])
        return -torch.stack([-a, -b, -a - b]).logsumexp(0)


class SequenceNetwork(nn.Module):
    """Behaviour, candidate and profile of a row, for a model that attends to behaviour.

    Parameters
    ----------
    embedding : FeatureEmbedding
        Embeddings of the encoded rows.
    model : DIN, AWMoE or SASRec
        Scores a candidate.
    sequence : int
        Number of the behaviour among the sequences.
    target : int
        Number of the candidate among the sparse columns.
    prior : LabelPrior, optional
        What counting says, which is added to the logits.
    similarity : bool, default=False
        Whether the similarity of candidate and history is added, too.
    neighbours : bool, default=False
        Whether what the nearest items say may be added in evaluation, for DIN and AW-MoE.
    """

    def __init__(
        self,
        embedding: FeatureEmbedding,
        model: DIN | AWMoE | SASRec,
        sequence: int,
        target: int,
        prior: LabelPrior | None = None,
        similarity: bool = False,
        neighbours: bool = False,
    ) -> None:
        super().__init__()
        self.embedding, self.model = embedding, model
        self.sequence, self.target = sequence, target
        self.prior, self.similarity = prior, similarity
        self.neighbours = ItemNeighbours() if neighbours else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; one of 0.1 has neither a prior nor neighbours."""
        super().__setstate__({"similarity": False, **state})
        self._modules.setdefault("prior", None)
        self._modules.setdefault("neighbours", None)

    @property
    def factorised(self) -> bool:
        """Whether a logit is the product of a vector of the user and one of the item."""
        return isinstance(self.model, SASRec)

    def user_vectors(self, rows: Rows) -> Tensor:
        """Vectors ``(N, dim + 2)`` of users, of which only the history and the prior's columns of users are read."""
        assert isinstance(self.model, SASRec)
        behaviour, present = self._histories(rows)
        own = self.model.user_vectors(behaviour, present)
        if self.similarity:
            own = own + root_sum(behaviour, present)
        own = for_each(own, rows.sparse.shape[0])
        bias = own.new_zeros(len(own)) if self.prior is None else self.prior.of_users(rows, self.target)
        return torch.cat([own, torch.ones_like(bias)[:, None], bias[:, None]], dim=1)

    def item_vectors(self, rows: Rows) -> Tensor:
        """Vectors ``(I, dim + 2)`` of items, whose product with a user's is the logit."""
        own = self.embedding.sparse(rows)[:, self.target]
        bias = own.new_zeros(len(own)) if self.prior is None else self.prior.of_items(rows, self.target)
        return torch.cat([own, bias[:, None], torch.ones_like(bias)[:, None]], dim=1)

    def parts(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Behaviour ``(R, L, dim)``, candidate ``(N, dim)``, mask of the behaviour ``(R, L)``, profile ``(N, P)``."""
        behaviour, present = self._histories(rows)
        target, profile = self._candidates(rows)
        return behaviour, target, present, profile

    def _candidates(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Candidates ``(N, dim)`` and profiles ``(N, P)``."""
        sparse = self.embedding.sparse(rows)  # (N, S, dim)
        return sparse[:, self.target], torch.cat([sparse.flatten(1), rows.dense.to(sparse.dtype)], dim=1)

    def _own(self, rows: Rows) -> Rows:
        """R rows with the histories, of N / R neighbouring rows each."""
        return rows.at(distinct(rows.sequences[self.sequence]))

    def _histories(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Entries ``(R, L, dim)`` and mask ``(R, L)`` of the histories."""
        return self.embedding.sequence(self._own(rows), self.sequence)

    def learn_neighbours(self, catalogue: ItemCatalogue, encoder: TableEncoder) -> None:
        """Take the nearest items of a catalogue, if they are wanted."""
        if self.neighbours is not None:
            self.neighbours.learn(catalogue.neighbours, catalogue.codes(encoder)[:-1], encoder.table_sizes[self.target])

    def neighbour_sums(self, rows: Rows) -> Tensor:
        """What the nearest items say of each row, without its weight, ``(N,)``."""
        assert self.neighbours is not None
        return self.neighbours.sums(self._own(rows).sequences[self.sequence], rows.sparse[:, self.target])

    def forward(self, rows: Rows) -> Tensor:
        """Logits ``(N, 1)``."""
        if isinstance(self.model, SASRec):
            return (self.user_vectors(rows) * self.item_vectors(rows)).sum(1, keepdim=True)
        own, (target, profile) = self._own(rows), self._candidates(rows)
        present = self.embedding.present(own, self.sequence)
        if self.model.encoder is None and padding_costs(present):
            history = self.embedding.packed(own, self.sequence, present)
            logits, summed = self.model.packed(history.for_each(target.shape[0]), target, profile), history.root_sum()
        else:
            behaviour = self.embedding.entries(own, self.sequence)
            logits, summed = self.model(behaviour, target, present, profile), root_sum(behaviour, present)
        logits = self._with_counting(logits, summed, target, rows)
        if self.training or self.neighbours is None or not self.neighbours.active:
            return logits
        sums = self.neighbours.sums(own.sequences[self.sequence], rows.sparse[:, self.target])
        return self.neighbours(logits[:, 0], sums)[:, None]

    def _with_counting(self, logits: Tensor, summed: Tensor, target: Tensor, rows: Rows) -> Tensor:
        """Logits ``(N, 1)``, from those ``(N,)`` of the model, sums of the histories ``(R, dim)`` and candidates."""
        if self.similarity:
            logits = logits + (for_each(summed, target.shape[0]) * target).sum(-1)
        return (logits if self.prior is None else logits + self.prior(rows))[:, None]

    def with_views(self, rows: Rows, mask_probability: float) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(N, 1)``, and gate vectors ``(N, E)`` of the whole and of the masked behaviour; AW-MoE only."""
        assert isinstance(self.model, AWMoE)
        behaviour, target, present, profile = self.parts(rows)
        masks = [present, drop_behaviour(for_each(present, target.shape[0]), mask_probability)]
        logits, (gate, view) = self.model.with_gates(behaviour, target, masks, profile)
        return self._with_counting(logits, root_sum(behaviour, present), target, rows), gate, view


def scenario_numbers(rows: Rows, column: int) -> Tensor:
    """Scenarios ``(N,)`` of rows: 1 to S, and 0 where it is missing or was not seen in training."""
    return (rows.sparse[:, column] - (FIRST - 1)).clamp_min(0)
