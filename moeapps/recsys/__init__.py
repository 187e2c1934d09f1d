"""Recommendation: schemas, multi-gate experts for several targets, experts activated by behaviour, metrics."""

from moeapps.recsys.attention import DIN, AWMoE, contrastive_loss
from moeapps.recsys.aw_moe_ranker import AWMoERanker
from moeapps.recsys.data import RankingData
from moeapps.recsys.datasets import (
    PublicRankingData,
    amazon_reviews,
    census_income,
    census_schema,
    convert_ali_ccp,
    kuairand,
    kuairand_schema,
)
from moeapps.recsys.diagnosis import Diagnosis, diagnose
from moeapps.recsys.encoder import TableEncoder
from moeapps.recsys.export import OnnxRanker, export_ranker
from moeapps.recsys.histories import add_history, leave_last_out, time_split
from moeapps.recsys.home import HoME
from moeapps.recsys.metrics import auc, calibration, gauc, ndcg_at_k, task_table
from moeapps.recsys.module import RankingModule
from moeapps.recsys.movielens import movielens_1m, movielens_100k, movielens_schema
from moeapps.recsys.multi_task_ranker import MultiTaskRanker
from moeapps.recsys.multigate import PLE, AdaTT, MMoE, SharedBottom
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
    "OnnxRanker",
    "PublicRankingData",
    "RankingData",
    "RankingModule",
    "Schema",
    "Sequence",
    "SharedBottom",
    "Sparse",
    "TableEncoder",
    "add_history",
    "amazon_reviews",
    "auc",
    "calibration",
    "census_income",
    "census_schema",
    "contrastive_loss",
    "convert_ali_ccp",
    "diagnose",
    "export_ranker",
    "gauc",
    "kuairand",
    "kuairand_schema",
    "leave_last_out",
    "movielens_1m",
    "movielens_100k",
    "movielens_schema",
    "ndcg_at_k",
    "task_table",
    "time_split",
]
