"""A gate over the predictions of any experts: arrays in, mixture weights and mixed predictions out.

The experts themselves stay outside: this package sees what they predicted for rows that they did not learn from.

- :mod:`~moeapps.core.mixing.inputs`: checks of these arrays, and how sure each expert is of its prediction
- :mod:`~moeapps.core.mixing.calibration`: a temperature and a floor per expert
- :mod:`~moeapps.core.mixing.line`: what corrects a mixed prediction, and stacking
- :mod:`~moeapps.core.mixing.gate`: the gate, a small network whose scores go through one of the core's routers
- :mod:`~moeapps.core.mixing.training`: its training by the mixture's likelihood
- :mod:`~moeapps.core.mixing.mixture`: gate, calibration and pool as one fitted object
- :mod:`~moeapps.core.mixing.selection`: the candidates, their comparison on rows that none has seen, and the choice
- :mod:`~moeapps.core.mixing.cascade`: experts asked in the order of their cost, as far as it pays; fitted by
  :mod:`~moeapps.core.mixing.cascade_fit` with :mod:`~moeapps.core.mixing.gain` (what going on is expected to bring) and
  :mod:`~moeapps.core.mixing.simulation` (cost and loss at each threshold)
"""

from moeapps.core.mixing.calibration import Calibration, fit_calibration
from moeapps.core.mixing.cascade import Cascade, CascadeAnswer
from moeapps.core.mixing.cascade_fit import fit_cascade
from moeapps.core.mixing.gate import FixedGate, GateConfig, PredictionGate
from moeapps.core.mixing.mixture import GatedMixture
from moeapps.core.mixing.selection import fit_mixture

__all__ = [
    "Calibration",
    "Cascade",
    "CascadeAnswer",
    "FixedGate",
    "GateConfig",
    "GatedMixture",
    "PredictionGate",
    "fit_calibration",
    "fit_cascade",
    "fit_mixture",
]
