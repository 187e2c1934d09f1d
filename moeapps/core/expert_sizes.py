"""Hidden widths of experts of different sizes, by name.

Shapes: E experts, h mean hidden width.
"""

from collections.abc import Sequence

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError
from moeapps.registry import did_you_mean

__all__ = ["SIZE_NAMES", "ExpertSizes", "hidden_sizes"]

SIZE_NAMES = ("arithmetic", "geometric")
ExpertSizes = str | Sequence[int] | None
"""What ``expert_sizes`` may be: a name, a width per expert, or None for experts of one size."""


def hidden_sizes(sizes: str | Sequence[int], hidden_dim: int, num_experts: int) -> tuple[int, ...]:
    r"""Hidden width of each expert, smallest first (HMoE, Wang et al. 2024).

    ``"arithmetic"``: widths proportional to :math:`E + 1 + 2e` (9, 11, ..., 23 for eight experts), so that the largest
    is almost three times the smallest. ``"geometric"``: proportional to :math:`2^e` (1, 2, ..., 128 for eight). Either
    way they add up to E h, so that the layer has the parameters of one with experts of width h; no expert is narrower
    than 1. These proportions are ours.

    Parameters
    ----------
    sizes : {"arithmetic", "geometric"} or sequence of int
        A name, or the widths themselves, E numbers.
    hidden_dim : int
        Mean width h, for a name.
    num_experts : int
        Number of experts E.

    Returns
    -------
    tuple of int
        E widths.

    Raises
    ------
    ConfigError
        If there is no such name, or the widths are not E numbers of at least 1.
    """
    if isinstance(sizes, str):
        if sizes not in SIZE_NAMES:
            names = ", ".join(SIZE_NAMES)
            hint = did_you_mean(sizes, SIZE_NAMES)
            raise ConfigError(f"expert_sizes must be one of {names}, or a width per expert, got {sizes!r}{hint}")
        return _shared_out(sizes, hidden_dim, num_experts)
    widths = tuple(sizes)
    if len(widths) != num_experts:
        raise ConfigError(f"expert_sizes must have a width for each of the {num_experts} experts, got {len(widths)}")
    for width in widths:
        check_sizes(expert_sizes=width)
    return tuple(int(width) for width in widths)


def _shared_out(name: str, hidden_dim: int, num_experts: int) -> tuple[int, ...]:
    """E h units, shared out by name: rounded shares of those that are left, from the smallest expert on."""
    check_sizes(hidden_dim=hidden_dim, num_experts=num_experts)

    def part(e: int) -> int:
        return num_experts + 1 + 2 * e if name == "arithmetic" else 2**e

    units, left, widths = num_experts * hidden_dim, sum(map(part, range(num_experts))), []
    for e in range(num_experts):
        width = max(1, (2 * units * part(e) + left) // (2 * left))  # rounded, in whole numbers of any size
        widths.append(width)
        units, left = units - width, left - part(e)
    return tuple(widths)
