"""What a module keeps of how its graph was read: the columns of two tables, and whether features were normalised."""

from typing import Any

from moeapps.core.errors import DataError
from moeapps.core.module import MoEModule

__all__ = ["TableReading"]


class TableReading(MoEModule):
    """Adds to a module how its data was read: the tables of nodes and edges, if there are such, and the features.

    Attributes
    ----------
    node_table : dict or None
        State of the :class:`~moeapps.graph.node_table.NodeTable`; a checkpoint has it.
    normalized : bool or None
        Whether each node's features were scaled to sum to 1; None of a checkpoint that does not say.
    """

    node_table: dict[str, Any] | None = None
    normalized: bool | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how the data was read."""
        super().on_save_checkpoint(checkpoint)
        if self.normalized is not None:
            checkpoint["normalized"] = self.normalized
        if self.node_table is not None:
            checkpoint["node_table"] = self.node_table

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over how the data was read."""
        super().on_load_checkpoint(checkpoint)
        self.normalized = checkpoint.get("normalized")
        self.node_table = checkpoint.get("node_table")

    def compare_reading(self, first: bool, remedy: str) -> None:
        """Features mean the columns of the training's tables, on the scale of the training.

        Parameters
        ----------
        first : bool
            Whether this is the data of the training, whose reading is noted.
        remedy : str
            What else predicts other nodes, for the error.

        Raises
        ------
        DataError
            If the data were read in another way.
        """
        data = getattr(self._trainer, "datamodule", None)
        self._compare_scale(getattr(data, "normalized", None))
        reading = getattr(data, "node_table", None)
        table = None if reading is None else reading.state()
        if first:
            self.node_table = table
        if self.node_table != table:
            raise DataError(
                "the columns of the nodes are not those that the model was trained on, or have other values: "
                f"{remedy}, which reads them as in training"
            )

    def _compare_scale(self, normalized: bool | None) -> None:
        """Note whether features are normalised, or refuse those that are not as in training."""
        if self.normalized is None:  # at the start, or of an older checkpoint
            self.normalized = normalized
        if None not in (normalized, self.normalized) and normalized != self.normalized:
            what = ("as they are", "scaled to sum to 1 for each node")
            raise DataError(
                f"the model was trained on features {what[bool(self.normalized)]}, those of this data are "
                f"{what[bool(normalized)]}: give the data normalize_features={self.normalized}"
            )
