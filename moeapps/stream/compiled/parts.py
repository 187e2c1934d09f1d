"""How the compiled loops are put together: parts that are compiled once each, and entries that Python calls.

numba compiles every function as if Python would call it: with wrappers for Python and C, an optimisation of its own
together with all that it calls, and machine code of its own. The loops of this package are about a hundred functions,
of which Python calls a handful, so most of that work is never used. Here a function is one of two:

- A :class:`Part` is called by compiled functions. It is translated to LLVM's intermediate code, which is linked into
  what calls it. (Where Python calls it, as tests do, it is compiled once more, as an entry.)
- An :class:`Entry` is called by Python. It is optimised together with its parts, and its machine code is kept on disk.

It rests on classes of numba that are not documented for users. Where a version of numba lacks one of them,
:data:`CAN_LINK` is False, and all functions are compiled in numba's own way: the same loops after a longer wait.
"""

import gc
import logging
import time
from types import ModuleType
from typing import Any

from numba.core import event
from numba.core.registry import CPUDispatcher

try:
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import CompilerBase, DefaultPassBuilder
    from numba.core.compiler_machinery import register_pass
    from numba.core.typed_passes import NativeLowering

    _used = ("_optimize_final_module", "_finalize_final_module", "_finalize_dynamic_globals", "_get_module_for_linking")
    CAN_LINK = all(hasattr(JITCodeLibrary, name) for name in _used)
    """Whether this version of numba has what parts are made with."""
except ImportError:
    CAN_LINK = False

__all__ = ["CAN_LINK", "Entry", "Part"]

logger = logging.getLogger("moeapps.stream.compiled")

_OPTIONS = {"nopython": True, "error_model": "numpy", "no_cfunc_wrapper": True}

_FIRST_LINE = 3.0
"""Seconds until the first line of progress; each of the others comes after 2.5 times as long."""

_FEW = 10
"""Nothing is said about entries of fewer parts."""


class Entry(CPUDispatcher):
    """A compiled function that Python calls.

    Parameters
    ----------
    function : function
        What is compiled when it is first called.
    nogil : bool
        Whether it lets go of the interpreter's lock while it runs.
    """

    def __init__(self, function: Any, nogil: bool) -> None:
        super().__init__(function, targetoptions={**_OPTIONS, "nogil": nogil})


if CAN_LINK:

    class _PartLibrary(JITCodeLibrary):
        """Code that is linked into other code, and neither optimised nor run by itself."""

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalize_dynamic_globals()
            self._finalized = True

    @register_pass(mutates_CFG=True, analysis_only=False)
    class _PartLowering(NativeLowering):
        """Translation to LLVM's intermediate code, without machine code."""

        _name = "moeapps_part_lowering"

        def run_pass(self, state: Any) -> bool:
            state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
            state.flags.no_compile = True
            super().run_pass(state)
            result = state["cr"]
            # numba finds the code of a function by its Python wrapper; any builtin method of its own will do
            key = object().__dir__
            state.targetctx.insert_user_function(key, result.fndesc, [state.library])
            state["cr"] = result._replace(cfunc=key)
            return True

    class _PartCompiler(CompilerBase):
        def define_pipelines(self) -> list[Any]:
            passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
            passes.passes = [(_PartLowering if one is NativeLowering else one, text) for one, text in passes.passes]
            passes._finalized = False
            passes.finalize()
            return [passes]


class Part(CPUDispatcher):
    """A compiled function that compiled functions call.

    Parameters
    ----------
    function : function
        What is compiled for the types that it is first called with.
    as_entry : callable
        From the function to what is run where Python calls it.
    """

    def __init__(self, function: Any, as_entry: Any) -> None:
        options: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True}
        super().__init__(function, targetoptions=options, pipeline_class=_PartCompiler)
        self._as_entry = as_entry
        self._entry: Any = None

    def __call__(self, *args: Any) -> Any:
        """Run it from Python."""
        if self._entry is None:
            self._entry = self._as_entry(self.py_func)
        return self._entry(*args)


def _parts_of(dispatcher: Any, found: set[Any]) -> set[Any]:
    """All parts that a function calls, directly or not."""
    names, scope = dispatcher.py_func.__code__.co_names, dispatcher.py_func.__globals__
    modules = [scope[name] for name in names if isinstance(scope.get(name), ModuleType)]
    for space in (scope, *(vars(module) for module in modules)):
        for name in names:
            part = space.get(name)
            if isinstance(part, Part) and part not in found:
                found.add(part)
                _parts_of(part, found)
    return found


class _Progress(event.Listener):
    """Says what is going on while an entry with many parts is compiled, and keeps Python's garbage collection out.

    The collector would go through the many objects that numba makes again and again, for an eighth of the time.
    """

    def __init__(self) -> None:
        self.depth, self.tells, self.collects = 0, False, False
        self.parts: set[Any] = set()
        self.ready: set[Any] = set()
        self.start = self.next = 0.0

    def on_start(self, event: Any) -> None:
        dispatcher = event.data["dispatcher"]
        if not isinstance(dispatcher, Entry | Part):
            return
        self.depth += 1
        if self.depth > 1:
            return
        self.collects = gc.isenabled()
        gc.disable()
        self.parts, self.ready = _parts_of(dispatcher, set()), set()
        self.start = time.monotonic()
        self.next = self.start + _FIRST_LINE
        self.tells = len(self.parts) >= _FEW
        if self.tells:
            logger.warning(
                "moeapps compiles its stream loops for this machine, once: %s and %d functions that it calls",
                dispatcher.py_func.__name__, len(self.parts),
            )  # fmt: skip

    def on_end(self, event: Any) -> None:
        dispatcher = event.data["dispatcher"]
        if not isinstance(dispatcher, Entry | Part):
            return
        self.depth -= 1
        self.ready.add(dispatcher)
        now = time.monotonic()
        if self.depth == 0:
            if self.collects:
                gc.enable()
            if self.tells:
                logger.warning("moeapps compiles its stream loops: done, %.0f s", now - self.start)
        elif self.tells and now >= self.next:
            self.next = now + 1.5 * (now - self.start)
            logger.warning(
                "moeapps compiles its stream loops: %d of %d functions, %.0f s",
                len(self.ready & self.parts), len(self.parts), now - self.start,
            )  # fmt: skip


event.register("numba:compile", _Progress())
