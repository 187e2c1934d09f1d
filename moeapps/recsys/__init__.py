"""Recommendation: schemas, multi-gate experts for several targets, experts activated by behaviour, metrics."""

from moeapps.moved import warn_deprecated
from moeapps.recsys import schema
from moeapps.recsys.attention import DIN, AWMoE, contrastive_loss
from moeapps.recsys.aw_moe_ranker import AWMoERanker
from moeapps.recsys.data import RankingData
from moeapps.recsys.datasets import (
    PublicRankingData,
    amazon_events,
    amazon_reviews,
    amazon_schema,
    census_income,
    census_schema,
    convert_ali_ccp,
    convert_amazon_reviews,
    convert_movielens,
    kuairand,
    kuairand_schema,
    movielens_large_schema,
)
from moeapps.recsys.diagnosis import Diagnosis, diagnose
from moeapps.recsys.encoder import TableEncoder
from moeapps.recsys.export import OnnxRanker, export_ranker
from moeapps.recsys.histories import add_history, leave_last_out, time_split
from moeapps.recsys.home import HoME
from moeapps.recsys.implicit import ImplicitFeedback, implicit_feedback
from moeapps.recsys.implicit_data import ImplicitData
from moeapps.recsys.metrics import auc, calibration, gauc, ndcg_at_k, task_table
from moeapps.recsys.module import RankingModule
from moeapps.recsys.movielens import movielens_1m, movielens_100k, movielens_schema
from moeapps.recsys.multi_task_ranker import MultiTaskRanker
from moeapps.recsys.multigate import (
    PLE,
    AdaTT,
    AdaTTConfig,
    MMoE,
    MMoEConfig,
    MultiGateConfig,
    PLEConfig,
    SharedBottom,
)
from moeapps.recsys.network import RankingConfig
from moeapps.recsys.prior import LabelPrior
from moeapps.recsys.recommend import Ranks, ranks_of, recommendation_table
from moeapps.recsys.sasrec import SASRec
from moeapps.recsys.scenarios import STAR, PEPNet, PEPNetConfig
from moeapps.recsys.schema import DenseFeature, Schema, SequenceFeature, SparseFeature
from moeapps.recsys.task_relations import TaskRelations

__all__ = [
    "DIN",
    "PLE",
    "STAR",
    "AWMoE",
    "AWMoERanker",
    "AdaTT",
    "AdaTTConfig",
    "DenseFeature",
    "Diagnosis",
    "HoME",
    "ImplicitData",
    "ImplicitFeedback",
    "LabelPrior",
    "MMoE",
    "MMoEConfig",
    "MultiGateConfig",
    "MultiTaskRanker",
    "OnnxRanker",
    "PEPNet",
    "PEPNetConfig",
    "PLEConfig",
    "PublicRankingData",
    "RankingConfig",
    "RankingData",
    "RankingModule",
    "Ranks",
    "SASRec",
    "Schema",
    "SequenceFeature",
    "SharedBottom",
    "SparseFeature",
    "TableEncoder",
    "TaskRelations",
    "add_history",
    "amazon_events",
    "amazon_reviews",
    "amazon_schema",
    "auc",
    "calibration",
    "census_income",
    "census_schema",
    "contrastive_loss",
    "convert_ali_ccp",
    "convert_amazon_reviews",
    "convert_movielens",
    "diagnose",
    "export_ranker",
    "gauc",
    "implicit_feedback",
    "kuairand",
    "kuairand_schema",
    "leave_last_out",
    "movielens_1m",
    "movielens_100k",
    "movielens_large_schema",
    "movielens_schema",
    "ndcg_at_k",
    "ranks_of",
    "recommendation_table",
    "task_table",
    "time_split",
]


def __getattr__(name: str) -> object:
    """Names of 0.1: ``Sparse``, ``Dense`` and ``Sequence``."""
    if name in schema.OLD_NAMES:
        new = schema.OLD_NAMES[name]
        warn_deprecated(f"moeapps.recsys.{name} is now called {new.__name__}")
        return new
    raise AttributeError(f"module 'moeapps.recsys' has no attribute {name!r}")
