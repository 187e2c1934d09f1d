"""Features that are mostly zeros, as bags of words are: stored, multiplied and dropped out without the zeros.

A node of Cora has a few of 1,433 words; ``benchmarks/graph_speed.py`` times networks and trainings on such features.
"""

# N nodes, F features, n entries that are not 0, d width

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SparseFeatures", "sparse_where_it_pays"]

SIZE, SHARE, GIVEN_SHARE = 1 << 18, 0.05, 0.1
"""A matrix of this many numbers is stored sparse if at most this share of them is not 0; the last is the share for one
that was given sparse, whose dense form may not fit into memory."""


class SparseFeatures(Tensor):
    """A matrix ``(N, F)`` in compressed rows, which behaves like a dense tensor that cannot be changed.

    Products with a weight matrix (``torch.nn.Linear``), choices of rows and dropout work on its entries. For all other
    functions of torch it becomes dense.

    Parameters
    ----------
    pointer : Tensor of shape (N + 1,)
        Row i has the entries ``pointer[i]`` to ``pointer[i + 1]``.
    column : Tensor of shape (n,)
        Their columns.
    value : float Tensor of shape (n,)
        The entries.
    shape : tuple of int
        N and F.

    Examples
    --------
    >>> x = SparseFeatures.of(torch.eye(3))
    >>> x[torch.tensor([2, 0])].to_dense()
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """

    pointer: Tensor
    column: Tensor
    value: Tensor

    @staticmethod
    def __new__(cls: Any, pointer: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> "SparseFeatures":
        """A tensor of this shape without memory of its own."""
        made: SparseFeatures = Tensor._make_wrapper_subclass(cls, shape, dtype=value.dtype, device=value.device)
        return made

    def __init__(self, pointer: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> None:
        self.pointer, self.column, self.value = pointer, column, value

    @classmethod
    def of(cls, matrix: Any) -> "SparseFeatures":
        """From a dense tensor, a sparse one of any layout, or a scipy matrix; float32, on the CPU."""
        if isinstance(matrix, Tensor) and matrix.layout == torch.strided:
            found = matrix.to_sparse_csr()
            parts = found.crow_indices(), found.col_indices(), found.values()
        else:
            if isinstance(matrix, Tensor):
                coo = matrix.detach().cpu().to_sparse_coo().coalesce()
                (row, column), value = coo.indices().numpy(), coo.values().numpy()
                matrix = sparse.coo_array((value, (row, column)), shape=tuple(matrix.shape))
            csr = sparse.csr_array(matrix)
            csr.sum_duplicates()
            parts = tuple(torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data))  # type: ignore[assignment]
        pointer, column, value = parts
        small = max(*matrix.shape, len(value)) < 2**31
        kind = torch.int32 if small else torch.int64
        return cls(pointer.to(kind), column.to(kind), value.to(torch.float32), tuple(matrix.shape))

    @cached_property
    def matrix(self) -> Tensor:
        """As a tensor of torch in compressed rows."""
        return torch.sparse_csr_tensor(self.pointer, self.column, self.value, tuple(self.shape), check_invariants=False)

    @cached_property
    def transposed(self) -> Tensor:
        """``(F, N)`` in compressed rows, for gradients."""
        csc = sparse.csr_array((self.value.numpy(), self.column.numpy(), self.pointer.numpy()), self.shape).tocsc()
        pointer, column, value = (torch.from_numpy(part) for part in (csc.indptr, csc.indices, csc.data))
        return torch.sparse_csr_tensor(pointer, column, value, tuple(self.shape)[::-1], check_invariants=False)

    def rows(self, index: Any) -> "SparseFeatures":
        """Some rows, by a slice, node numbers or a mask."""
        if isinstance(index, slice):
            index = torch.arange(self.shape[0], device=self.device)[index]
        elif index.dtype == torch.bool:
            index = index.nonzero().flatten()
        else:
            index = torch.where(index < 0, index + self.shape[0], index).long()
        start, end = self.pointer[index].long(), self.pointer[index + 1].long()
        length = end - start
        pointer = torch.cat([length.new_zeros(1), length.cumsum(0)])
        entry = torch.arange(int(pointer[-1]), device=self.device)
        entry += (start - pointer[:-1]).repeat_interleave(length)
        kind = self.pointer.dtype
        return SparseFeatures(pointer.to(kind), self.column[entry], self.value[entry], (len(index), self.shape[1]))

    def with_values(self, value: Tensor) -> "SparseFeatures":
        """The same places with other entries."""
        return SparseFeatures(self.pointer, self.column, value, tuple(self.shape))  # type: ignore[arg-type]

    def row_sums(self) -> Tensor:
        """``(N,)`` sums of the rows."""
        row = torch.arange(self.shape[0]).repeat_interleave(self.pointer.diff().long())
        return torch.zeros(self.shape[0], dtype=self.value.dtype).index_add_(0, row, self.value)

    def scaled(self, factor: Tensor) -> "SparseFeatures":
        """Each row times its factor ``(N,)``."""
        return self.with_values(self.value * factor.repeat_interleave(self.pointer.diff().long()))

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseFeatures":
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return SparseFeatures, (self.pointer, self.column, self.value, tuple(self.shape))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"SparseFeatures(shape={tuple(self.shape)}, entries={len(self.value)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _OWN and isinstance(args[0], SparseFeatures):
            found = _OWN[func](*args, **kwargs)
            if found is not NotImplemented:
                return found
        if name == "__get__" or func in _OF_SHAPE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if isinstance(args[0] if args else None, SparseFeatures) and (name == "__setitem__" or _in_place(name)):
            raise TypeError(f"sparse features cannot be changed in place ({name}): make them dense, x.to_dense()")
        return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*_dense(args), **_dense(kwargs or {}))


def sparse_where_it_pays(x: Tensor) -> Tensor:
    """Dense features ``(N, F)`` as :class:`SparseFeatures` if they are large and mostly zeros, else as they are."""
    if isinstance(x, SparseFeatures) or x.is_cuda or x.numel() < SIZE:
        return x
    return SparseFeatures.of(x) if int(x.count_nonzero()) <= SHARE * x.numel() else x


class _Product(torch.autograd.Function):
    """X W' of sparse features ``(N, F)`` and a weight ``(d, F)``, with the gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: SparseFeatures) -> Tensor:
        ctx.x = x
        return x.matrix @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with torch.autocast(gradient.device.type, enabled=False):
            return (ctx.x.transposed @ gradient.contiguous()).t(), None


def _linear(x: SparseFeatures, weight: Tensor, bias: Tensor | None = None) -> Any:
    if weight.dtype != x.value.dtype or weight.device != x.value.device:
        return NotImplemented
    with torch.autocast(weight.device.type, enabled=False):
        out = _Product.apply(weight, x)
        return out if bias is None else out + bias


def _rows(x: SparseFeatures, index: Any) -> Any:
    if isinstance(index, Tensor) and index.ndim == 1 and index.dtype != torch.uint8:
        return x.rows(index)
    return x.rows(index) if isinstance(index, slice) and index.step in (None, 1) else NotImplemented


def _index_select(x: SparseFeatures, dim: int, index: Tensor) -> Any:
    return x.rows(index) if dim == 0 else NotImplemented


def _to(x: SparseFeatures, *args: Any, **kwargs: Any) -> Any:
    probe = x.value[:0].to(*args, **kwargs)
    return x if (probe.device, probe.dtype) == (x.value.device, x.value.dtype) else NotImplemented


def _dropout(x: SparseFeatures, p: float = 0.5, training: bool = True, inplace: bool = False) -> SparseFeatures:
    # a zero stays zero, dropped or not: dropping entries is the same as dropping numbers
    return x.with_values(F.dropout(x.value, p, training))


def _same(x: SparseFeatures, *args: Any, **kwargs: Any) -> SparseFeatures:
    return x


def _to_dense(x: SparseFeatures, *args: Any, **kwargs: Any) -> Tensor:
    return x.matrix.to_dense(*args, **kwargs)


_OWN: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.dropout: _dropout,
    torch.dropout: _dropout,
    torch.index_select: _index_select,
    Tensor.index_select: _index_select,
    Tensor.__getitem__: _rows,
    Tensor.to: _to,
    Tensor.cpu: lambda x, *a, **k: _to(x, "cpu"),
    Tensor.float: lambda x, *a, **k: _to(x, torch.float32),
    Tensor.contiguous: _same,
    Tensor.detach: _same,
    Tensor.to_dense: _to_dense,
}

_OF_SHAPE = {
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.__len__, Tensor.is_floating_point,
    Tensor.is_complex, torch.is_floating_point, torch.is_complex, torch.numel,
}  # fmt: skip


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _dense(value: Any) -> Any:
    """Arguments with dense tensors in place of sparse features."""
    if isinstance(value, SparseFeatures):
        return value.matrix.to_dense()
    if isinstance(value, dict):
        return {key: _dense(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_dense(entry) for entry in value)
    return value
