"""Names of what learning models tell Prometheus: the same for ``moeapps serve`` and ``moeapps stream run``."""

import math
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["Learning", "expose", "expose_learning"]

Learning = dict[str, Any]
"""What is known of a learning model: ``metric`` ("accuracy" or "mae"), ``total``, ``windowed``, ``window``, ``scored``,
``alarms``, ``renewed``, ``learned``, ``waiting`` (for labels), ``classes`` or None, ``named`` and ``named_windowed``
(further metrics by name)."""


class _LearningCollector(Collector):
    def __init__(self, values: Callable[[], Learning | None]) -> None:
        self.values = values

    def collect(self) -> list[Metric]:
        """The values as they are now."""
        values = self.values()
        if values is None:
            return []
        metric = values["metric"]
        score = GaugeMetricFamily(
            "moeapps_score", "Score of predictions made before their label was known", labels=["metric", "over"]
        )
        for over, found in (("window", values["windowed"]), ("all", values["total"])):
            score.add_metric([metric, over], math.nan if found is None else found)
        for name in values.get("named", {}):
            score.add_metric([name, "window"], values["named_windowed"][name])
            score.add_metric([name, "all"], values["named"][name])
        families: list[Metric] = [score]
        for name, about in (
            ("scored", "Labelled events that were predicted first"),
            ("learned", "Events that the model has learned"),
        ):
            families.append(CounterMetricFamily(f"moeapps_events_{name}", about, value=values[name]))
        families += [
            CounterMetricFamily("moeapps_drift_alarms", "Times at which the errors had risen", value=values["alarms"]),
            CounterMetricFamily("moeapps_experts_renewed", "Experts that the model replaced", value=values["renewed"]),
            GaugeMetricFamily("moeapps_score_window", "Events in the window of scores", value=values["window"]),
            GaugeMetricFamily("moeapps_waiting_for_label", "Predicted events without a label", value=values["waiting"]),
        ]
        if values["classes"] is not None:
            families.append(GaugeMetricFamily("moeapps_classes", "Labels seen so far", value=values["classes"]))
        return families


def expose_learning(registry: CollectorRegistry, values: Callable[[], Learning | None]) -> None:
    """Add the numbers of a learning model to a registry.

    Parameters
    ----------
    registry : CollectorRegistry
        The registry.
    values : callable
        Returns them as they are when they are asked for, None where there are none.
    """
    registry.register(_LearningCollector(values))


def expose(registry: CollectorRegistry, name: str, about: str, value: Callable[[], float]) -> None:
    """Add a gauge whose value is asked for."""
    Gauge(name, about, registry=registry).set_function(value)
