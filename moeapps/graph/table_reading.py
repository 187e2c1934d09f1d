"""What a module keeps of the two tables that its graph came from: how they were read."""

from typing import Any

from moeapps.core.errors import DataError
from moeapps.core.module import MoEModule

__all__ = ["TableReading"]


class TableReading(MoEModule):
    """Adds to a module how the tables of nodes and edges were read, if its data is in tables.

    Attributes
    ----------
    node_table : dict or None
        State of the :class:`~moeapps.graph.node_table.NodeTable`; a checkpoint has it.
    """

    node_table: dict[str, Any] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how the tables were read."""
        super().on_save_checkpoint(checkpoint)
        if self.node_table is not None:
            checkpoint["node_table"] = self.node_table

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over how the tables were read."""
        super().on_load_checkpoint(checkpoint)
        self.node_table = checkpoint.get("node_table")

    def compare_reading(self, first: bool, remedy: str) -> None:
        """Features mean the columns of the training's tables.

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
        reading = getattr(getattr(self._trainer, "datamodule", None), "node_table", None)
        table = None if reading is None else reading.state()
        if first:
            self.node_table = table
        if self.node_table != table:
            raise DataError(
                "the columns of the nodes are not those that the model was trained on, or have other values: "
                f"{remedy}, which reads them as in training"
            )
