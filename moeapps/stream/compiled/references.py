"""References: the content of a NamedTuple behind one pointer, for compiled code.

Compiled code hands a tuple of arrays on by value, and counts a reference to each array in every call; a reference to
all of them is one pointer, which made these loops two to three times faster. numba's structref is such a pointer, but
one is made by compiled code, which took seconds to compile for the hundred arrays of a model. Here Python writes the
memory that it points to, in numba's layout. The arrays in it count no references: the object in Python keeps them.
Where a version of numba has another layout, :data:`CAN_WRITE` is False, and references are made in numba's own way.
"""

# a struct of an array of n dimensions is (meminfo, parent, size, item size, data, n lengths, n strides)

import ctypes
import sys
from typing import Any, TypeVar

import numpy as np
from numba import typeof, types
from numba.core.registry import cpu_target
from numba.experimental import structref

try:
    from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]
    from numba.core.runtime.nrt import MemInfo

    _allocate = _nrt_python.meminfo_alloc
    _array = cpu_target.target_context.data_model_manager[types.float64[::1]]
    CAN_WRITE = tuple(_array._fields) == ("meminfo", "parent", "nitems", "itemsize", "data", "shape", "strides")
    """Whether this version of numba lays arrays out as :func:`_write` does."""
except (ImportError, AttributeError):
    CAN_WRITE = False

__all__ = ["CAN_WRITE", "as_reference", "referable"]

T = TypeVar("T", bound=type)


_CLASSES: dict[type, Any] = {}
"""Classes of references by the NamedTuple whose content they refer to."""


def referable(fields: T) -> T:
    """Decorate a NamedTuple of which there shall be references; see :func:`as_reference`.

    Its parts may be numbers, arrays, tuples of these, and referable tuples.
    """
    name = f"{fields.__name__}Ref"
    names = list(fields._fields)  # type: ignore[attr-defined]
    kind = structref.register(type(f"{name}Type", (types.StructRef,), {"preprocess_fields": _plain_fields}))
    proxy = type(name, (_Reference,), {"kind": kind, "names": names, "layouts": {}})
    structref.define_proxy(proxy, kind, names)
    for part in (kind, proxy):  # the cache on disk finds them by name
        part.__module__ = fields.__module__
        part.__qualname__ = part.__name__
        setattr(sys.modules[fields.__module__], part.__name__, part)
    _CLASSES[fields] = proxy
    return fields


def as_reference(state: Any) -> Any:
    """Reference to a referable NamedTuple, and so for its parts.

    Compiled code reads its attributes by the names of the tuple, and shares its arrays. A part may be a reference
    already.
    """
    parts = (as_reference(part) if type(part) in _CLASSES else part for part in state)
    return _CLASSES[type(state)](*parts)


def _plain_fields(self: Any, fields: Any) -> Any:
    return tuple((name, types.unliteral(kind)) for name, kind in fields)


class _Reference(structref.StructRefProxy):
    """What Python has of a reference; it keeps the arrays."""

    kind: Any
    names: list[str]
    layouts: dict[Any, Any]

    def __new__(cls, *content: Any) -> Any:
        if not CAN_WRITE:
            reference = super().__new__(cls, *content)
            reference.content = content
            return reference
        key = tuple(_key(value) for value in content)
        layout = cls.layouts.get(key)
        if layout is None:
            layout = cls.layouts[key] = _Layout(cls, content)
        pointer = _allocate(layout.size)
        memory = MemInfo(pointer)
        buffer = bytearray(layout.size)
        for value, kind, offset in zip(content, layout.kinds, layout.offsets, strict=True):
            _write(buffer, offset, kind, value)
        ctypes.memmove(memory.data, bytes(buffer), layout.size)
        reference = cls._numba_box_(layout.type, memory)
        reference.pointer, reference.content = pointer, content
        return reference


class _Layout:
    """Types of a reference's fields, and where they are in memory."""

    def __init__(self, cls: Any, content: tuple[Any, ...]) -> None:
        context = cpu_target.target_context  # numba's runtime begins with it
        self.kinds = [typeof(value) for value in content]
        self.type = cls.kind(list(zip(cls.names, self.kinds, strict=True)))
        struct = context.data_model_manager[self.type.get_data_type()].get_value_type()
        self.size = struct.get_abi_size(context.target_data)
        self.offsets = _offsets(struct, len(content))


def _key(value: Any) -> Any:
    """What decides the type of a field."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.ndim, value.flags.carray
    if isinstance(value, tuple):
        return (type(value), *(_key(part) for part in value))
    return value._numba_type_ if isinstance(value, _Reference) else type(value)


def _offsets(struct: Any, number: int) -> list[int]:
    """Bytes before each element of a struct of LLVM, or of its array."""
    data = cpu_target.target_context.target_data
    if not hasattr(struct, "element"):
        return [struct.get_element_offset(data, i) for i in range(number)]
    return [i * struct.element.get_abi_size(data) for i in range(number)]


def _write(buffer: bytearray, offset: int, kind: Any, value: Any) -> None:
    """Write a value of a type of numba's as the compiled code has it."""
    if isinstance(kind, types.Array):
        if not value.flags.carray:
            raise ValueError("compiled loops need arrays that are contiguous and can be written to")
        numbers = (0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides)
        content = np.array(numbers, dtype=np.uint64).tobytes()
    elif isinstance(kind, types.StructRef):
        content = value.pointer.to_bytes(8, sys.byteorder)
    elif isinstance(kind, types.BaseTuple):
        struct = cpu_target.target_context.get_value_type(kind)
        parts: Any = kind
        for part, part_kind, start in zip(value, parts, _offsets(struct, len(value)), strict=True):
            _write(buffer, offset + start, part_kind, part)
        return
    else:
        content = np.array(value, dtype=np.bool_ if kind is types.boolean else str(kind)).tobytes()
    buffer[offset : offset + len(content)] = content
