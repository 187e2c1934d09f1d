"""river's estimator interface for a class that is scikit-learn's estimator too."""

from river.base import Base, Estimator

__all__ = ["RiverFace"]


class RiverFace(Base):
    """The methods of river's ``Estimator``, without deriving from it.

    scikit-learn's ``check_estimator_tags_renamed`` refuses every class with an ancestor that has a ``_more_tags`` of
    its own, which river's Estimator has. So the estimators are registered as virtual subclasses of river's classes:
    ``isinstance`` is true, and the methods are defined here.
    """

    @property
    def _tags(self) -> set[str]:
        return set()

    @property
    def _supervised(self) -> bool:
        return True

    def _unit_test_skips(self) -> set[str]:
        return set()

    __or__ = Estimator.__or__
    __ror__ = Estimator.__ror__
