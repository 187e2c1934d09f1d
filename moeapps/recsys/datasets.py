"""Public data sets: frames from local files, and a data module that knows them by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.source import Table
from moeapps.core.tabledata.writer import TableWriter
from moeapps.recsys.census import census_income, census_schema
from moeapps.recsys.converters import (
    PARTS,
    amazon_events,
    amazon_schema,
    convert_amazon_reviews,
    convert_movielens,
    movielens_large_schema,
)
from moeapps.recsys.data import RankingData
from moeapps.recsys.histories import add_history, time_split
from moeapps.recsys.kuaishou import kuairand, kuairand_schema
from moeapps.recsys.movielens import movielens_1m, movielens_100k, movielens_schema
from moeapps.recsys.schema import Schema

__all__ = [
    "PublicRankingData",
    "amazon_events",
    "amazon_reviews",
    "amazon_schema",
    "census_income",
    "census_schema",
    "convert_ali_ccp",
    "convert_amazon_reviews",
    "convert_movielens",
    "kuairand",
    "kuairand_schema",
    "movielens_large_schema",
]


def amazon_reviews(path: str | Path, max_history: int = 50) -> pd.DataFrame:
    """Amazon reviews (McAuley's lab; the editions of 2014, 2018 and 2023): whether the user gives 4 or 5 stars.

    Parameters
    ----------
    path : str or Path
        JSON lines or a table of ratings, of any edition, as :func:`~moeapps.recsys.amazon_events` reads it. For
        millions of reviews take :func:`~moeapps.recsys.convert_amazon_reviews`, which makes no object per row.
    max_history : int, default=50
        Number of newest entries of a history.

    Returns
    -------
    DataFrame
        ``user_id``, ``item_id``, ``rating``, ``timestamp``, ``item_id_history``, ``liked`` in order of time.

    Raises
    ------
    DataError
        If the file is missing, or a line is not a review.
    """
    events = amazon_events(path)
    reviews = pd.DataFrame({**events, **{name: events[name].astype(object) for name in ("user_id", "item_id")}})
    frame = add_history(reviews, max_history=max_history)
    frame["liked"] = (frame["rating"] >= 4).astype(int)
    return frame


_ALI_FIELDS = ("101", "121", "122", "124", "125", "126", "127", "128", "129", "205", "206", "207", "216", "301", "508",
               "509", "702", "853")  # fmt: skip


def convert_ali_ccp(folder: str | Path, output: str | Path, part: str = "train", limit: int | None = None) -> int:
    """Write Ali-CCP (Ma et al., SIGIR 2018) as a table with ``click`` and ``purchase`` and the 18 single-valued fields.

    The features of users are kept in memory, the samples are not: use the result as the file of a
    :class:`~moeapps.recsys.RankingData`.

    1. Read the users' features (``common_features``).
    2. Read a sample (``sample_skeleton``), and add the features of its user.
    3. Write every 65,536 samples.

    Parameters
    ----------
    folder : str or Path
        Folder with ``sample_skeleton_<part>.csv`` and ``common_features_<part>.csv`` (after a login on
        https://tianchi.aliyun.com/dataset/408).
    output : str or Path
        ``.parquet`` or ``.csv`` file to write.
    part : {"train", "test"}, default="train"
        Part of the set.
    limit : int, optional
        Number of samples; all by default.

    Returns
    -------
    int
        Number of samples.

    Raises
    ------
    DataError
        If a file is missing or a line has another number of cells.
    """
    folder = Path(folder)
    paths = [folder / f"{kind}_{part}.csv" for kind in ("common_features", "sample_skeleton")]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} does not exist; Ali-CCP is at https://tianchi.aliyun.com/dataset/408")
    # The features of a user stand once, in a file of their own, and are shared by the user's samples
    common = {cells[0]: _ali_features(cells[2]) for cells in _ali_lines(paths[0], 3)}
    rows: list[dict[str, Any]] = []
    columns = ["click", "purchase", *(f"field_{field}" for field in _ALI_FIELDS)]
    with TableWriter(output) as writer:
        for number, cells in enumerate(_ali_lines(paths[1], 6)):
            if number == limit:
                break
            row = {"click": int(cells[1]), "purchase": int(cells[2])}
            rows.append({**row, **common.get(cells[3], {}), **_ali_features(cells[5])})
            if len(rows) == 65_536:
                writer.write(pd.DataFrame(rows, columns=columns))
                rows = []
        if rows:
            writer.write(pd.DataFrame(rows, columns=columns))
    return writer.rows


def _ali_lines(path: Path, cells: int) -> Iterator[list[str]]:
    with path.open() as file:
        for number, line in enumerate(file, 1):
            row = line.rstrip("\n").split(",")
            if len(row) != cells:
                raise DataError(f"{path}, line {number}: {len(row)} cells, expected {cells}")
            yield row


def _ali_features(text: str) -> dict[str, str]:
    """The last value of every single-valued field of ``field 2 id 3 value 1 field ...`` (control characters)."""
    features = {}
    for entry in text.split("\x01"):
        field, _, rest = entry.partition("\x02")
        if field in _ALI_FIELDS:
            features[f"field_{field}"] = rest.partition("\x03")[0]
    return features


@dataclass(frozen=True)
class _Public:
    """How a set is loaded, and where it is published."""

    load: Callable[[Path | None], pd.DataFrame] | None
    schema: Schema
    time: str | None = None
    """Column to split by; at random when None."""
    url: str | None = None
    md5: str | None = None
    inside: str = ""
    """Folder in the archive."""
    convert: Callable[[Path, Path], Any] | None = None
    """Writes a set that is too large for a frame as a Parquet file per part."""


def _grouplens(name: str, md5: str, **how: Any) -> _Public:
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return _Public(time="timestamp", url=url, md5=md5, inside=name, **how)


PUBLIC: dict[str, _Public] = {
    "census-income": _Public(census_income, census_schema()),
    "ml-100k": _grouplens(
        "ml-100k",
        "0e33842e24a9c977be4e0107933c0723",
        load=lambda path: movielens_100k(_needed(path)),
        schema=movielens_schema(),
    ),
    "ml-1m": _grouplens(
        "ml-1m",
        "c4d9eecfca2ab87c1945afe126590906",
        load=lambda path: movielens_1m(_needed(path)),
        schema=movielens_schema(),
    ),
    "ml-20m": _grouplens(
        "ml-20m",
        "cd245b17a1ae2cc31bb14903e1204af3",
        load=None,
        schema=movielens_large_schema(),
        convert=convert_movielens,
    ),
    "ml-32m": _grouplens(
        "ml-32m",
        "d472be332d4daa821edc399621853b57",
        load=None,
        schema=movielens_large_schema(),
        convert=convert_movielens,
    ),
    "amazon-reviews": _Public(None, amazon_schema(), "timestamp", convert=convert_amazon_reviews),
    "kuairand-pure": _Public(
        lambda path: kuairand(_needed(path)),
        kuairand_schema(),
        "time_ms",
        "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
        "0820331067a3784d9691136f772b35a7",
        "KuaiRand-Pure/data",
    ),
    "kuairand-1k": _Public(
        lambda path: kuairand(_needed(path)),
        kuairand_schema(),
        "time_ms",
        "https://zenodo.org/records/10439422/files/KuaiRand-1K.tar.gz",
        "6b0b9c8222d67fcd4c676218edca3f1f",
        "KuaiRand-1K/data",
    ),
}
"""Public sets by name."""


def _needed(path: Path | None) -> Path:
    assert path is not None
    return path


class PublicRankingData(RankingData):
    """A public data set, split 80/10/10: in order of time where its rows have one, at random otherwise.

    Parameters
    ----------
    name : str, default="census-income"
        The set: "census-income", "ml-100k", "ml-1m", "ml-20m", "ml-32m", "kuairand-pure", "kuairand-1k" or
        "amazon-reviews".
    path : str, optional
        Folder of the files (of census-income and amazon-reviews: the file), as they are distributed. For census-income
        without a path, the embedded sample of 8,000 rows. Of ml-20m, ml-32m and amazon-reviews a Parquet file per part
        is written beside them once, in a folder whose name ends in ``moeapps``; remove it to have it written again.
    download : bool, default=False
        Whether to download missing files to ``path`` and to check them against their MD5. By using a set you accept its
        licence.
    targets : list of str, optional
        Columns to be predicted; the set's own by default.
    predict : str, default="test"
        A file to predict, or ``"test"`` for the test rows.
    keep : list of str, optional
        Columns to copy beside the predictions.
    batch_size : int, default=1024
        Rows per step.
    seed : int, default=0
        Seed of the order, and of a random split.

    Raises
    ------
    ConfigError
        If the name is unknown, or a path is needed.
    """

    def __init__(
        self,
        name: str = "census-income",
        path: str | None = None,
        download: bool = False,
        targets: list[str] | None = None,
        predict: str = "test",
        keep: list[str] | None = None,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        check_one_of("name", name, PUBLIC)
        public = PUBLIC[name]
        if path is None and name != "census-income":
            where = f"its folder as path (download: {public.url})" if public.url else "its file as path"
            raise ConfigError(f"{name} is not part of the package: give {where}")
        super().__init__(
            targets=targets or public.schema.targets,
            predict=predict,
            schema=public.schema,
            ignored=[target for target in public.schema.targets if targets and target not in targets],
            keep=keep or [],
            batch_size=batch_size,
            seed=seed,
        )
        self.set_name, self.path, self.download = name, path, download
        self._frames: dict[str, pd.DataFrame] = {}

    def prepare_data(self) -> None:
        """Download missing files, if ``download`` is set."""
        public = PUBLIC[self.set_name]
        if self.download and public.url is not None and self.path is not None and not _folder(self.path, public.inside):
            from torchvision.datasets.utils import download_and_extract_archive

            download_and_extract_archive(public.url, self.path, md5=public.md5)

    def load(self, part: str) -> Table | None:
        """A part of the set, or the file to predict."""
        if part == "predict" and self.parts["predict"] != "test":
            return super().load(part)
        public = PUBLIC[self.set_name]
        where = None if self.path is None else _folder(self.path, public.inside) or Path(self.path)
        if public.convert is not None:
            return _converted(public.convert, _needed(where), "test" if part == "predict" else part)
        if not self._frames:
            assert public.load is not None
            frame = public.load(where)
            if public.time is not None:
                parts = time_split(frame, public.time)
            else:
                # Not `core.splits.hold_out`, which would choose other rows than 0.1 for a seed
                order = np.random.default_rng(self.seed).permutation(len(frame))
                cuts = [len(frame) * 8 // 10, len(frame) * 9 // 10]
                parts = [frame.iloc[rows] for rows in np.split(order, cuts)]
            self._frames = dict(zip(("train", "val", "test"), parts, strict=True))
        return self._frames["test" if part == "predict" else part]


def _converted(convert: Callable[[Path, Path], Any], source: Path, part: str) -> str:
    """File of a part of a large set, after all parts were written, if they were not."""
    folder = source / "moeapps" if source.is_dir() else source.with_name(f"{source.name}.moeapps")
    if not all((folder / f"{name}.parquet").is_file() for name in PARTS):
        convert(source, folder)
    return str(folder / f"{part}.parquet")


def _folder(path: str, inside: str) -> Path | None:
    """Folder of an archive's files: ``path`` itself or where the archive was unpacked; None if they are missing."""
    for folder in (Path(path) / inside, Path(path)):
        if folder.is_file() or (folder.is_dir() and any(entry.is_file() for entry in folder.glob("*[.]*"))):
            return folder
    return None
