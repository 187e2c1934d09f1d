"""The auxiliary losses of several routed layers, and the sum of loss terms."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.layer import MoE, RoutedLayer

__all__ = ["SampleGroups", "losses_of", "sum_of_terms"]

SampleGroups = Tensor | Sequence[int]


def losses_of(
    layers: Mapping[str, RoutedLayer], token_weight: Tensor | None = None, sample_groups: SampleGroups | None = None
) -> dict[str, Tensor]:
    """Weighted auxiliary losses of the layers' last forward pass, keyed ``<layer>/<name>``.

    Parameters
    ----------
    layers : mapping of str to RoutedLayer
        Layers by name.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None.
    sample_groups : Tensor or sequence of int, optional
        ``(S,)`` group of each sample, for experts in groups (:func:`~moeapps.core.tuning.low_rank.lora_experts`).

    Raises
    ------
    ConfigError
        If groups are given without experts in groups, or the other way round.
    DataError
        If ``sample_groups`` are no groups of the experts, or not one per sample.
    """
    groups = {} if sample_groups is None else {"sample_groups": _checked_groups(layers.values(), sample_groups)}
    return {
        f"{name}/{kind}": value
        for name, layer in layers.items()
        for kind, value in layer.auxiliary_losses(token_weight, **groups).items()
    }


def _checked_groups(layers: Iterable[RoutedLayer], sample_groups: SampleGroups) -> Tensor:
    """The samples' groups as a tensor ``(S,)``, each of which some experts have."""
    known = {group for layer in layers if isinstance(layer, MoE) for group in layer.experts.groups or ()}
    if not known:
        raise ConfigError(
            "sample_groups are given, and no experts of this network are in groups: lora_experts(expert_groups=) puts "
            "them into groups"
        )
    groups = torch.as_tensor(sample_groups)
    if groups.ndim != 1 or groups.is_floating_point() or groups.is_complex():
        raise DataError(
            f"sample_groups must be whole numbers (S,), one per sample, got {groups.dtype} {tuple(groups.shape)}"
        )
    if unknown := set(groups.unique().tolist()) - known:
        raise DataError(f"sample_groups has the group {min(unknown)}; the experts have {sorted(known)}")
    return groups.long()


def sum_of_terms(terms: dict[str, Tensor]) -> Tensor:
    """Sum of scalar loss terms, in float32 or better."""
    return torch.stack([term.float() if term.dtype.itemsize < 4 else term for term in terms.values()]).sum()
