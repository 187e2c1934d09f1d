"""Recommendation: schemas, multi-gate experts for several targets, experts activated by behaviour, metrics."""

from moeapps.recsys.attention import DIN, AWMoE, contrastive_loss
from moeapps.recsys.aw_moe_ranker import AWMoERanker
from moeapps.recsys.diagnosis import Diagnosis, diagnose
from moeapps.recsys.encoder import TableEncoder
from moeapps.recsys.home import HoME
from moeapps.recsys.metrics import auc, calibration, gauc, ndcg_at_k, task_table
from moeapps.recsys.module import RankingModule
from moeapps.recsys.multi_task_ranker import MultiTaskRanker
from moeapps.recsys.multigate import PLE, AdaTT, MMoE, SharedBottom
from moeapps.recsys.public import census_income, census_schema, movielens_100k, movielens_schema, time_split
from moeapps.recsys.schema import Dense, Schema, Sequence, Sparse

__all__ = [
    "DIN",
    "PLE",
    "AWMoE",
    "AWMoERanker",
    "AdaTT",
    "Dense",
    "Diagnosis",
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
    "census_income",
    "census_schema",
    "contrastive_loss",
    "diagnose",
    "gauc",
    "movielens_100k",
    "movielens_schema",
    "ndcg_at_k",
    "task_table",
    "time_split",
]
