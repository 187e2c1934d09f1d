"""Public streams by name: from a folder of the user's, or through river, scikit-learn and OpenML."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from river import datasets
from scipy.io import arff
from sklearn.datasets import fetch_covtype, fetch_openml

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream.generators import SYNTHETIC_STREAMS, SyntheticStream, synthetic_stream

__all__ = ["PUBLIC_STREAMS", "SYNTHETIC_STREAMS", "SyntheticStream", "electricity", "public_stream", "synthetic_stream"]

Labeled = tuple[pd.DataFrame, pd.Series]

COLUMNS = ("date", "day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
ELEC_FILES = ("elec2_data.dat", "elec2_label.dat")
DRIFT_DATASETS = "the repository vlosing/driftDatasets"


def electricity(folder: str | Path | None = None) -> Labeled:
    """Electricity (Elec2, Harries 1999): 45,312 half hours of the New South Wales market, 8 features, in time order.

    The label says whether the price rises above its mean of the last 24 hours: 1 for up, 0 for down.

    Parameters
    ----------
    folder : str or Path, optional
        Folder with ``elec2_data.dat`` and ``elec2_label.dat`` (space-separated, as in the repository
        vlosing/driftDatasets, where label 0 is up). Without one, river's copy is used, which it downloads at the
        first use.

    Raises
    ------
    DataError
        If the files are not there, do not have 8 columns and as many labels, or river cannot download.

    Returns
    -------
    features : DataFrame of shape (45312, 8)
    labels : Series of shape (45312,)
    """
    if folder is None:
        try:
            return _elec_fetched(download=True)
        except OSError as error:
            raise DataError(
                f"Electricity could not be downloaded ({error}): give electricity(folder) a folder with "
                "elec2_data.dat and elec2_label.dat"
            ) from None
    data, label = (Path(folder) / name for name in ELEC_FILES)
    for file in (data, label):
        if not file.is_file():
            raise DataError(f"{file} does not exist, expected the Electricity files elec2_data.dat and elec2_label.dat")
    features, down = np.loadtxt(data, ndmin=2), np.loadtxt(label, ndmin=1)
    if features.shape[1] != len(COLUMNS) or len(features) != len(down):
        raise DataError(f"{data} has shape {features.shape} and {label} {len(down)} labels, expected n x 8 and n")
    return pd.DataFrame(features, columns=list(COLUMNS)), pd.Series(down == 0, name="up").astype(int)


@dataclass(frozen=True)
class _Public:
    """How a stream is read from files and fetched, and where its files are published."""

    read: Callable[[Path], Labeled]
    """From a folder that has the files."""
    files: tuple[str, ...]
    """Names of the files; the first alternative that is there is read where ``read`` takes one file."""
    where: str
    """Where the files are published, for errors."""
    fetch: Callable[[bool], Labeled] | None = None
    """Through a library, which keeps a copy; the argument says whether it may download."""
    shape: tuple[int, int] = (0, 0)
    """Rows and features."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the files as they are published."""
    one_of: bool = False
    """Whether one of the files is enough, since they are editions of the same data."""


def public_stream(
    name: str, folder: str | Path | None = None, *, download: bool = False, verify: bool = True
) -> Labeled:
    """A public stream by name, in its original order.

    ``electricity`` (45,312 x 8, 2 classes), ``covertype`` (581,012 x 54, 7), ``airlines`` (539,383 x 7, 2; text in the
    columns of airline, airports and weekday, with 293 airports: ``max_categories`` should be 300), ``weather`` (18,159
    x 8, 2), ``outdoor`` (4,000 x 21, 40), and ``insects-<variant>`` (33 features, 6 classes) in the variants of river:
    ``abrupt_balanced``, ``abrupt_imbalanced``, ``gradual_balanced``, ``gradual_imbalanced``,
    ``incremental_abrupt_balanced``, ``incremental_reoccurring_balanced``, ``incremental_balanced``.

    Parameters
    ----------
    name : str
        One of :data:`PUBLIC_STREAMS`.
    folder : str or Path, optional
        Folder with the files as they are published. When None, the copy of the library that serves the stream: river
        for electricity and INSECTS, scikit-learn for covertype, OpenML (data set 1169) for airlines. weather and
        outdoor are read from a folder only.
    download : bool, default False
        Whether that library may download a copy that it does not have. By using a stream you accept its licence.
    verify : bool, default True
        Whether to compare the files of a folder with the published checksums, where they are known, and the number of
        rows.

    Returns
    -------
    features : DataFrame of shape (n, F)
    labels : Series of shape (n,)

    Raises
    ------
    ConfigError
        If the name is unknown, or no library serves the stream and no folder is given.
    DataError
        If a file is missing, damaged or not as it was published, or nothing can be downloaded.

    References
    ----------
    Electricity: Harries 1999. Covertype: Blackard and Dean 1999. Airlines: Ikonomovska 2009. Weather: Elwell and
    Polikar 2011. Outdoor: Losing, Hammer and Wersing 2015. INSECTS: Souza et al. 2020.

    Examples
    --------
    >>> X, y = public_stream("outdoor", "data/driftDatasets")  # doctest: +SKIP
    """
    check_one_of("name", name, PUBLIC_STREAMS)
    public = _PUBLIC[name]
    if folder is None:
        if public.fetch is None:
            raise ConfigError(
                f"folder is needed for {name!r}, which no library serves: give a folder with "
                f"{' and '.join(public.files)} from {public.where}"
            )
        found = _fetched(name, public, download)
    else:
        paths = _paths(name, public, Path(folder))
        if verify:
            _verify(public, paths)
        found = public.read(Path(folder))
    if verify and found[0].shape != public.shape:
        raise DataError(
            f"{name} has {found[0].shape[0]} rows and {found[0].shape[1]} features, expected {public.shape[0]} and "
            f"{public.shape[1]}; verify=False reads it as it is"
        )
    return found


def _fetched(name: str, public: _Public, download: bool) -> Labeled:
    """What a library has or downloads."""
    assert public.fetch is not None
    one = "one of " if public.one_of else ""
    otherwise = f"a folder with {one}{', '.join(public.files)} from {public.where}"
    try:
        return public.fetch(download)
    except FileNotFoundError:
        raise DataError(
            f"{name} is not on this machine: download=True fetches it, or give folder, {otherwise}"
        ) from None
    except OSError as error:
        raise DataError(f"{name} could not be downloaded ({error}): give folder, {otherwise}") from None


def _paths(name: str, public: _Public, folder: Path) -> list[Path]:
    """The files that will be read; all have to be there, or one of several editions."""
    paths = [folder / file for file in public.files]
    if public.one_of:
        paths = [path for path in paths if path.is_file()][:1]
        if not paths:
            raise DataError(
                f"{folder} has none of {', '.join(public.files)}, expected one of them for {name} from {public.where}"
            )
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} does not exist, expected the files of {name} from {public.where}")
    return paths


def _verify(public: _Public, paths: list[Path]) -> None:
    for path in paths:
        expected = public.sha256.get(path.name)
        if expected is None:
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected:
            raise DataError(
                f"{path} has SHA-256 {digest[:16]}..., expected {expected[:16]}... as published in {public.where}; "
                "verify=False reads it as it is"
            )


def _of_river(source: Any, download: bool) -> Any:
    """A data set of river's, downloaded if it may be."""
    if not source.is_downloaded:
        if not download:
            raise FileNotFoundError(source.filename)
        source.download(verbose=False)
    return source


def _elec_fetched(download: bool) -> Labeled:
    rows, labels = zip(*_of_river(datasets.Elec2(), download), strict=True)
    return pd.DataFrame(rows), pd.Series(labels, name="up").astype(int)


def _insects_fetched(variant: str) -> Callable[[bool], Labeled]:
    return lambda download: _insects(Path(_of_river(datasets.Insects(variant), download).path))


def _insects(path: Path) -> Labeled:
    """The file of river: 33 numbers and the class, without names."""
    frame = _csv(path, header=None)
    if frame.shape[1] != 34:
        raise DataError(f"{path} has {frame.shape[1]} columns, expected 33 features and the class")
    frame.columns = pd.Index([*(f"f{i}" for i in range(1, 34)), "class"])
    return _numbers(path, frame.drop(columns="class")), frame["class"].astype(str)


def _covertype_fetched(download: bool) -> Labeled:
    try:
        found = fetch_covtype(download_if_missing=download, as_frame=True)
    except OSError as error:
        if download:
            raise
        raise FileNotFoundError(str(error)) from None
    return found.data, found.target.rename("cover_type").astype(int)


def _covertype(folder: Path) -> Labeled:
    path = next(folder / name for name in ("covtype.data.gz", "covtype.data") if (folder / name).is_file())
    frame = _csv(path, header=None)
    if frame.shape[1] != 55:
        raise DataError(f"{path} has {frame.shape[1]} columns, expected 54 features and the class")
    names = [
        "Elevation", "Aspect", "Slope", "Horizontal_Distance_To_Hydrology", "Vertical_Distance_To_Hydrology",
        "Horizontal_Distance_To_Roadways", "Hillshade_9am", "Hillshade_Noon", "Hillshade_3pm",
        "Horizontal_Distance_To_Fire_Points", *(f"Wilderness_Area_{i}" for i in range(4)),
        *(f"Soil_Type_{i}" for i in range(40)), "cover_type",
    ]  # fmt: skip
    frame.columns = pd.Index(names)
    frame = _numbers(path, frame)
    return frame.drop(columns="cover_type").astype(float), frame["cover_type"].astype(int)


def _airlines_fetched(download: bool) -> Labeled:
    if not download and not _openml_has(1169):
        raise FileNotFoundError("airlines")
    found = fetch_openml(data_id=1169, as_frame=True, parser="auto")
    return _airlines_frame(found.data, found.target)


def _openml_has(number: int) -> bool:
    """Whether scikit-learn has kept a data set of OpenML; it has no argument that forbids a download."""
    from sklearn.datasets import get_data_home

    kept = Path(get_data_home()) / "openml"
    return any(kept.rglob(f"data/{number}.gz"))  # the description; the table is kept beside it


def _airlines(folder: Path) -> Labeled:
    path = folder / "airlines.arff"
    try:
        rows, _ = arff.loadarff(path)
    except (ValueError, NotImplementedError, StopIteration) as error:
        raise DataError(f"{path} is not a readable ARFF file: {str(error) or 'it has no line @data'}") from None
    frame = pd.DataFrame(rows)
    if "Delay" not in frame:
        raise DataError(f"{path} has the columns {', '.join(map(str, frame))}, expected Delay as the last")
    for column in frame.select_dtypes(object):
        frame[column] = frame[column].str.decode("utf-8")
    return _airlines_frame(frame.drop(columns="Delay"), frame["Delay"])


def _airlines_frame(frame: pd.DataFrame, delay: pd.Series) -> Labeled:
    text = frame.select_dtypes(exclude="number").columns
    frame = frame.astype(dict.fromkeys(text, str) | dict.fromkeys(frame.columns.difference(text), float))
    return frame, delay.astype(str).astype(int).rename("delayed")


def _pair(data: str, labels: str, separator: str, width: int, name: str) -> Callable[[Path], Labeled]:
    """Reader of a file of features and one of labels, both without names."""

    def read(folder: Path) -> Labeled:
        frame = _numbers(folder / data, _csv(folder / data, header=None, sep=separator))
        targets = _numbers(folder / labels, _csv(folder / labels, header=None))
        if frame.shape[1] != width or len(frame) != len(targets) or targets.shape[1] != 1:
            raise DataError(
                f"{folder / data} has shape {frame.shape} and {folder / labels} {len(targets)} labels, expected "
                f"n x {width} and n"
            )
        frame.columns = pd.Index([f"f{i}" for i in range(1, width + 1)])
        return frame.astype(float), targets[0].astype(int).rename(name)

    return read


def _csv(path: Path, **options: Any) -> pd.DataFrame:
    try:
        return pd.read_csv(path, **options)
    except (ValueError, EOFError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path} could not be read: {error}") from None


def _numbers(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, if it holds numbers only."""
    for column in frame:
        bad = pd.to_numeric(frame[column], errors="coerce").isna()
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise DataError(f"{path}, line {row + 1}, column {column}: {frame[column].iloc[row]!r} is not a number")
    return frame


def _insects_public(variant: str, rows: int) -> _Public:
    return _Public(
        lambda folder: _insects(folder / f"{variant}.csv"),
        (f"{variant}.csv",),
        "the USP DS repository, as river names the files",
        _insects_fetched(variant),
        (rows, 33),
    )


_PUBLIC: dict[str, _Public] = {
    "electricity": _Public(
        electricity,
        ELEC_FILES,
        DRIFT_DATASETS,
        _elec_fetched,
        (45_312, 8),
        {
            "elec2_data.dat": "f96f3b096a5318c1dab465f9c64b50824f751d651a13b864137cfefac6a6bef2",
            "elec2_label.dat": "769805ed2f942698b72bb6398d1f685ddd2c8b01213334658df709466890c154",
        },
    ),
    "covertype": _Public(
        _covertype,
        ("covtype.data.gz", "covtype.data"),
        "the UCI repository (data set 31)",
        _covertype_fetched,
        (581_012, 54),
        {"covtype.data.gz": "614360d0257557dd1792834a85a1cdebfadc3c4f30b011d56afee7ffb5b15771"},
        one_of=True,
    ),
    "airlines": _Public(
        _airlines, ("airlines.arff",), "OpenML (data set 1169) or MOA's web site", _airlines_fetched, (539_383, 7)
    ),
    "weather": _Public(
        _pair("NEweather_data.csv", "NEweather_class.csv", ",", 8, "rain"),
        ("NEweather_data.csv", "NEweather_class.csv"),
        DRIFT_DATASETS,
        shape=(18_159, 8),
        sha256={
            "NEweather_data.csv": "e38ef95890ec0df3daee0493e92e59c38ae1c27cd01c4805367f189d52dfeed9",
            "NEweather_class.csv": "90f39b754a9c95fc34047beb41752ebeb6fa1cde4e2d03fad3d3c5a46aee360f",
        },
    ),
    "outdoor": _Public(
        _pair("outdoorStream.data", "outdoorStream.labels", " ", 21, "object"),
        ("outdoorStream.data", "outdoorStream.labels"),
        DRIFT_DATASETS,
        shape=(4_000, 21),
        sha256={
            "outdoorStream.data": "53f9d793056bf60f832ded0122a9f7286ea35e42fa019d2f4b2158bf6ef4ec1b",
            "outdoorStream.labels": "e2dceebd3ab87380f7d60c03d8838a07135ba661ba0d626ab519bd97d6244435",
        },
    ),
    **{
        f"insects-{variant}": _insects_public(variant, datasets.Insects(variant).n_samples)
        for variant in datasets.Insects.variants
    },
}

PUBLIC_STREAMS = tuple(_PUBLIC)
"""Names that :func:`public_stream` knows."""
