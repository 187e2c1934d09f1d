"""Copies of CSV files in a form that is fast to read again, so that each file is parsed once."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["CellsCopy"]


class CellsCopy:
    """The cells of a CSV file as text, in Arrow's file format (lz4), in the batches in which they were parsed.

    Parameters
    ----------
    path : Path
        File to write.
    names : sequence of str
        Columns to copy.
    batches : iterable of RecordBatch
        Batches of these columns as text.

    Attributes
    ----------
    names : frozenset of str
        Columns that were copied.
    rows : int
        Number of rows.
    """

    def __init__(self, path: Path, names: Sequence[str], batches: Iterable[pa.RecordBatch]) -> None:
        self.path, self.names, self.rows = path, frozenset(names), 0
        schema = pa.schema([(name, pa.string()) for name in names])
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch.select(names))
                self.rows += batch.num_rows

    def batches(self, names: list[str], numbers: list[str], missing: frozenset[str]) -> Iterator[pa.RecordBatch]:
        """The batches, with some columns as numbers.

        Parameters
        ----------
        names : list of str
            Columns to read.
        numbers : list of str
            Those of them that are numbers.
        missing : frozenset of str
            Texts that mean a missing number.

        Raises
        ------
        ArrowInvalid
            With "conversion error" in its text, as Arrow's reader of CSV files has it, if a cell is no number.
        """
        absent = pa.array(sorted(missing), pa.string())
        with pa.memory_map(str(self.path)) as file:
            every = pa.ipc.open_file(file).schema.names
            options = pa.ipc.IpcReadOptions(included_fields=sorted(every.index(name) for name in names))
            reader = pa.ipc.open_file(file, options=options)
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                columns = [
                    _as_numbers(batch.column(name), absent) if name in numbers else batch.column(name) for name in names
                ]
                yield pa.RecordBatch.from_arrays(columns, names)


def _as_numbers(cells: pa.Array, absent: pa.Array) -> pa.Array:
    try:
        return pc.if_else(pc.is_in(cells, absent), None, cells).cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"conversion error: {error}") from None
