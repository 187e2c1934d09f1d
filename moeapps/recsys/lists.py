"""Lists of Arrow as one column of entries."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moeapps.recsys.schema import SequenceFeature

__all__ = ["flatten_arrow"]


def flatten_arrow(column: pd.Series, sequence: SequenceFeature) -> tuple[pd.Series, NDArray[np.int64]]:
    """Newest entries of all rows one after the other, and how many each row has, without a Python object per entry."""
    lists = pa.array(column)
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    whole = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = np.minimum(whole, sequence.max_len)
    entries = lists.flatten()  # without those of missing lists
    ends = np.cumsum(whole)
    starts = np.cumsum(lengths) - lengths
    position = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    chosen = np.repeat(ends - lengths, lengths) + position
    flat = entries.take(pa.array(chosen, pa.int64()))
    return pd.Series(pd.array(flat, dtype=pd.ArrowDtype(flat.type)), name=sequence.name), lengths
