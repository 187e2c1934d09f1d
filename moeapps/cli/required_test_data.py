"""``moeapps fit --test``: data without a test part are refused before anything is trained."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from moeapps.core.errors import ConfigError, MoEAppsError

__all__ = ["RequireTestData"]


class RequireTestData(Callback):
    """Refuse to train where there will be nothing to test on.

    Data say so by ``has_test_data``; those without that attribute are believed to have some.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask the data, which have just been set up; the folder of the run is still empty.

        Raises
        ------
        ConfigError
            If they have no test part.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if stage != "fit" or getattr(data, "has_test_data", True):
            return
        try:
            data.test_dataloader()
        except MoEAppsError as error:  # the data know how their argument is called
            reason = str(error)
        else:
            reason = f"{type(data).__name__} has no test part"
        raise ConfigError(f"--test: {reason}. Nothing was trained; give test data, or leave --test out")
