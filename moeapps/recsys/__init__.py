"""Recommendation: schemas, multi-gate experts for several targets, experts activated by behaviour, metrics."""

from moeapps.recsys.attention import DIN, AWMoE, contrastive_loss
from moeapps.recsys.encoder import TableEncoder
from moeapps.recsys.home import HoME
from moeapps.recsys.metrics import auc, calibration, gauc, ndcg_at_k, task_table
from moeapps.recsys.module import RankingModule
from moeapps.recsys.multigate import PLE, AdaTT, MMoE, SharedBottom
from moeapps.recsys.ranker import AWMoERanker, MultiTaskRanker
from moeapps.recsys.schema import Dense, Schema, Sequence, Sparse

__all__ = [
    "DIN",
    "PLE",
    "AWMoE",
    "AWMoERanker",
    "AdaTT",
    "Dense",
    "HoME",
    "MMoE",
    "MultiTaskRanker",
    "RankingModule",
    "Schema",
    "Sequence",
    "SharedBottom",
    "Sparse",
    "TableEncoder",
    "auc",
    "calibration",
    "contrastive_loss",
    "gauc",
    "ndcg_at_k",
    "task_table",
]
