"""Keep what ``moeapps validate`` and ``test`` have measured beside the run of the checkpoint."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from moeapps.cli.continuing import differences
from moeapps.core.run_result import Evaluation, RunResult, folder_of_checkpoint

__all__ = ["keep_scores"]


def keep_scores(stage: str, checkpoint: str, metrics: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Write the scores of a checkpoint into ``result.json`` of its run, if it lies in the folder of one.

    Parameters
    ----------
    stage : {"validate", "test"}
        What was run.
    checkpoint : str
        The checkpoint.
    metrics : mapping of str to number
        What was logged; statistics of the routing are left out.
    config : dict
        Configuration of the command. Where its model or data are not those of the run, the scores are kept with that.
    """
    folder = folder_of_checkpoint(checkpoint)
    if folder is None:
        return
    changed = differences(config, folder)
    settings = {key: now for key, (now, _) in changed.items() if key.startswith(("model.", "data."))}
    scores = {name: float(value) for name, value in metrics.items() if "/moe/" not in name}
    result = RunResult.load(folder)
    result.add(Evaluation(stage, os.path.relpath(checkpoint, folder), scores, settings))
    try:
        result.save(folder)
    except OSError as error:  # somebody else's run, which this user may only read
        print(f"note: the scores are not kept in {folder}: {error}", file=sys.stderr)
