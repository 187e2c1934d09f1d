"""Real streams: Electricity, from a local folder or through river."""

from pathlib import Path

import numpy as np
import pandas as pd
from river import datasets

from moeapps.core.errors import DataError

__all__ = ["electricity"]

COLUMNS = ("date", "day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")


def electricity(folder: str | Path | None = None) -> tuple[pd.DataFrame, pd.Series]:
    """Electricity (Elec2, Harries 1999): 45,312 half hours of the New South Wales market, 8 features, in time order.

    The label says whether the price rises above its mean of the last 24 hours: 1 for up, 0 for down.

    Args:
        folder: Folder with ``elec2_data.dat`` and ``elec2_label.dat`` (space-separated, as in the repository
            vlosing/driftDatasets, where label 0 is up). Without one, river's copy is used, which it downloads at the
            first use.

    Raises:
        DataError: If the files are not there, do not have 8 columns and as many labels, or river cannot download.

    Returns:
        Features ``(45312, 8)`` and labels.
    """
    if folder is None:
        source = datasets.Elec2()
        if not source.is_downloaded:
            try:
                source.download(verbose=False)
            except OSError as error:
                raise DataError(
                    f"Electricity could not be downloaded ({error}): give electricity(folder) a folder with "
                    "elec2_data.dat and elec2_label.dat"
                ) from None
        rows, labels = zip(*source, strict=True)
        return pd.DataFrame(rows), pd.Series(labels, name="up").astype(int)
    data, label = (Path(folder) / name for name in ("elec2_data.dat", "elec2_label.dat"))
    for file in (data, label):
        if not file.is_file():
            raise DataError(f"{file} does not exist, expected the Electricity files elec2_data.dat and elec2_label.dat")
    features, down = np.loadtxt(data, ndmin=2), np.loadtxt(label, ndmin=1)
    if features.shape[1] != len(COLUMNS) or len(features) != len(down):
        raise DataError(f"{data} has shape {features.shape} and {label} {len(down)} labels, expected n x 8 and n")
    return pd.DataFrame(features, columns=list(COLUMNS)), pd.Series(down == 0, name="up").astype(int)
