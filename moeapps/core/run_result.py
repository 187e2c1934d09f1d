"""What a run of ``moeapps fit`` has come to, in its folder: whether it is finished, and the scores of its checkpoints.

``result.json`` is written when training ends, and again by ``moeapps validate`` and ``moeapps test``.
"""

import datetime
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moeapps.core.errors import FileFormatError
from moeapps.core.files import atomic_write
from moeapps.core.saved_arguments import fits

__all__ = ["RESULT", "Evaluation", "RunResult", "folder_of_checkpoint", "is_smaller_better"]

RESULT = "result.json"
"""Name of the file."""

_FOLDER = re.compile(r"(version|seed)_\d+")

_SMALLER = {"loss", "error", "mae", "mse", "rmse", "seconds", "brier", "ece", "fid", "nll", "logloss"}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a checkpoint.

    Parameters
    ----------
    stage : str
        ``validate`` or ``test``.
    checkpoint : str
        The checkpoint, relative to the folder of its run.
    scores : dict of str to float
        Metrics by name; NaN where a metric is undefined.
    settings : dict of str to str, default={}
        Settings of model and data that differ from the run's own, by key (``data.init_args.name``): with others, these
        are scores of other data.
    date : str, default=""
        Day and time, UTC.
    """

    stage: str
    checkpoint: str
    scores: dict[str, float]
    settings: dict[str, str] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"))


@dataclass
class RunResult:
    """State of a run.

    Parameters
    ----------
    finished : bool, default=False
        Whether training has come to its end.
    checkpoint : str, default=""
        The best checkpoint where one was chosen, else the last one; relative to the folder.
    evaluations : list of Evaluation, default=[]
        Oldest first.
    """

    finished: bool = False
    checkpoint: str = ""
    evaluations: list[Evaluation] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "RunResult":
        """Read it; an unfinished run without scores where there is no such file.

        Raises
        ------
        FileFormatError
            If the file is damaged.
        """
        path = folder / RESULT
        if not path.is_file():
            return cls()
        try:
            document = json.loads(path.read_text())
            evaluations = [_evaluation(part) for part in document.pop("evaluations")]
            result = cls(**document, evaluations=evaluations)
            if not (isinstance(result.finished, bool) and isinstance(result.checkpoint, str)):
                raise ValueError("finished or checkpoint is malformed")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from None
        return result

    def save(self, folder: Path) -> None:
        """Write it; the old file is replaced when the new one is complete."""
        document = asdict(self)
        for evaluation in document["evaluations"]:  # JSON has no NaN
            evaluation["scores"] = {k: v if math.isfinite(v) else None for k, v in evaluation["scores"].items()}
        with atomic_write(folder / RESULT) as file:
            file.write(json.dumps(document, indent=1, allow_nan=False).encode())

    def add(self, evaluation: Evaluation) -> None:
        """Add scores; they replace those of the same stage, checkpoint and settings."""
        key = (evaluation.stage, evaluation.checkpoint, evaluation.settings)
        others = [old for old in self.evaluations if (old.stage, old.checkpoint, old.settings) != key]
        self.evaluations = [*others, evaluation]

    def is_evaluated(self, stage: str) -> bool:
        """Whether the run's own checkpoint has scores of a stage, on the run's own data."""
        return any(e.stage == stage and e.checkpoint == self.checkpoint and not e.settings for e in self.evaluations)


def _evaluation(part: dict[str, Any]) -> Evaluation:
    scores = {name: math.nan if value is None else float(value) for name, value in part.pop("scores").items()}
    evaluation = Evaluation(scores=scores, **part)
    if not fits(evaluation.settings, dict[str, str]) or not fits(
        [evaluation.stage, evaluation.checkpoint, evaluation.date], list[str]
    ):
        raise ValueError("an evaluation is malformed")
    return evaluation


def folder_of_checkpoint(checkpoint: str | Path) -> Path | None:
    """Folder of the run that wrote a checkpoint; None where it is not in such a folder."""
    return next((folder for folder in list(Path(checkpoint).absolute().parents)[:2] if _is_run(folder)), None)


def _is_run(folder: Path) -> bool:
    """Whether moeapps made this folder for a run: a ``config.yaml`` alone may be anybody's."""
    ours = _FOLDER.fullmatch(folder.name) or any((folder / name).is_file() for name in ("metrics.csv", RESULT))
    return bool(ours) and (folder / "config.yaml").is_file()


def is_smaller_better(metric: str) -> bool:
    """Whether lower values of a metric are better, by its name (``val/loss``, ``test/rmse_rating``)."""
    return not _SMALLER.isdisjoint(metric.rpartition("/")[2].split("_"))
