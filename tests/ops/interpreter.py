"""Triton's interpreter, without the work that it repeats at each call of one kernel by another."""

from __future__ import annotations

import inspect


def patch_each_module_once() -> None:
    """Make the interpreter patch Triton's language once a kernel and not once a call in it.

    It replaces the language's functions by Python ones whenever a function that a kernel calls is
    entered, half of the time that our kernels take, and never takes that back. So a module that is
    patched already is left alone. Where the interpreter is built otherwise nothing is changed.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang", None)
    make_scope = getattr(interpreter, "_LangPatchScope", None)
    if patch is None or make_scope is None:
        return
    modules: dict[object, list[object]] = {}

    def patch_once(function: object) -> object:
        if function not in modules:
            values = function.__globals__.values()  # type: ignore[attr-defined]
            modules[function] = [
                value for value in values if inspect.ismodule(value) and value in (tl, tl.core)
            ]
        if not any(tl.core.is_builtin(module.load) for module in modules[function]):  # type: ignore[attr-defined]
            return make_scope()
        return patch(function)

    interpreter._patch_lang = patch_once
