"""KuaiRand: six tasks of short videos, in HoME's two groups."""

from pathlib import Path

import pandas as pd

from moeapps.core.errors import DataError
from moeapps.core.tabledata.source import require_columns
from moeapps.recsys.histories import add_history
from moeapps.recsys.schema import DenseFeature, Feature, Schema, SequenceFeature, SparseFeature

__all__ = ["KUAIRAND_GROUPS", "kuairand", "kuairand_schema"]

KUAIRAND_GROUPS = {
    "watch": ["is_click", "long_view"],
    "interact": ["is_like", "is_follow", "is_comment", "is_forward"],
}
"""Tasks of :func:`kuairand` in HoME's groups."""

_USER = ("user_active_degree", "follow_user_num_range", "fans_user_num_range", "friend_user_num_range",
         "register_days_range", *(f"onehot_feat{i}" for i in range(18)))  # fmt: skip
_VIDEO = ("author_id", "video_type", "upload_type", "music_type", "tag")


def kuairand(folder: str | Path, max_history: int = 50) -> pd.DataFrame:
    """KuaiRand-Pure or KuaiRand-1K (Gao et al., CIKM 2022), the standard log: six binary tasks of short videos.

    Parameters
    ----------
    folder : str or Path
        Folder with ``log_standard_*_pure.csv``, ``user_features_pure.csv`` and ``video_features_basic_pure.csv``, or
        with those of ``1k`` instead of ``pure``. The rows with their histories are in memory: about 1.4 million
        of Pure, 12 million of 1K.
    max_history : int, default=50
        Number of newest entries of a history, which has the videos that the user clicked before.

    Returns
    -------
    DataFrame
        Rows in order of time, for :func:`kuairand_schema`.

    Raises
    ------
    DataError
        If a file or column is missing.
    """
    folder = Path(folder)
    size = next((size for size in ("pure", "1k") if any(folder.glob(f"log_standard_*_{size}.csv"))), None)
    if size is None:
        raise DataError(
            f"{folder} has no log_standard_*_pure.csv and no log_standard_*_1k.csv, expected the folder data of "
            "KuaiRand-Pure or KuaiRand-1K"
        )
    logs = sorted(folder.glob(f"log_standard_*_{size}.csv"))
    tasks = [task for group in KUAIRAND_GROUPS.values() for task in group]
    columns = ["user_id", "video_id", "time_ms", "hourmin", "tab", *tasks]
    log = pd.concat([_csv(path, columns) for path in logs], ignore_index=True)
    log["hour"] = log.pop("hourmin") // 100
    frame = add_history(log, "user_id", "video_id", "time_ms", max_history, where="is_click")
    users = _csv(folder / f"user_features_{size}.csv", ["user_id", *_USER])
    videos = _csv(folder / f"video_features_basic_{size}.csv", ["video_id", *_VIDEO, "video_duration"])
    return frame.merge(users, on="user_id", how="left").merge(videos, on="video_id", how="left")


def kuairand_schema(max_history: int = 50) -> Schema:
    """Schema of :func:`kuairand`.

    Parameters
    ----------
    max_history : int, default=50
        Largest number of items in a history.
    """
    names = ("user_id", "video_id", "tab", "hour", *_USER, *_VIDEO)
    features: list[Feature] = [SparseFeature(name) for name in names]
    features += [
        DenseFeature("video_duration"),
        SequenceFeature("video_id_history", shares="video_id", max_len=max_history),
    ]
    tasks = [task for group in KUAIRAND_GROUPS.values() for task in group]
    return Schema(tuple(features), tuple(tasks), ("time_ms",))


def _csv(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    require_columns(columns, pd.read_csv(path, nrows=0).columns, str(path))
    return pd.read_csv(path, usecols=columns)[columns]
