"""Explicit SIMD for Numba kernels: one vector type, and the few operations the kernels need.

Numba leaves vectorisation to LLVM's loop vectoriser, which cannot keep a sum over states in
registers while it runs along channels. These intrinsics emit LLVM vectors of 512 bits directly
(16 float32 or 8 float64 lanes); LLVM maps them to what the machine has (AVX-512, pairs of AVX2
registers, fours of NEON ones). Memory is addressed by integers, as ``Tensor.data_ptr`` gives them.
``bits``, the width of a float, is always a compile-time constant.

Imported only when a kernel is first needed, because it imports Numba.
"""

# llvmlite and Numba's internals have no types.
# mypy: disable-error-code="no-untyped-call,import-untyped,misc"

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from sb3_dmamba.ops import _vector_code as code


class VectorType(types.Type):
    """Numba's type of a 512-bit vector of floats.

    Args:
        bits: Width of one float, 32 or 64.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__(name=f"Vector{bits}")


def _vector_model(manager: Any, numba_type: VectorType) -> Any:
    return models.PrimitiveModel(manager, numba_type, code.vector_type(numba_type.bits))


register_model(VectorType)(_vector_model)


# --- intrinsics ---------------------------------------------------------------------------------


def _vector_math(generate: Callable[..., Any], n_vectors: int) -> Any:
    """Make an intrinsic that maps vectors to a vector; ``generate(builder, *vectors, bits)``."""

    def resolve(first: Any) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return generate(builder, *args, first.bits)

        return first(*[first] * n_vectors), codegen

    if n_vectors == 1:
        return intrinsic(lambda typing_context, x: resolve(x))
    if n_vectors == 2:
        return intrinsic(lambda typing_context, x, y: resolve(x))
    return intrinsic(lambda typing_context, x, y, z: resolve(x))


fma: Any = _vector_math(code.fma, 3)  #: a * b + c
exp2: Any = _vector_math(code.exp2, 1)  #: 2**x
exp_minus_abs: Any = _vector_math(code.exp_minus_abs, 1)  #: exp(-|x|)
sigmoid_from_exp: Any = _vector_math(code.sigmoid_from_exp, 2)  #: (x, exp(-|x|)) -> sigmoid(x)
softplus_from_exp: Any = _vector_math(code.softplus_from_exp, 2)  #: (x, exp(-|x|)) -> softplus(x)


def _load(typing_context: Any, address: Any, bits: Any) -> Any:
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(
            code.pointer(builder, args[0], code.vector_type(width)), align=width // 8
        )

    return VectorType(width)(types.int64, bits), codegen


def _store(typing_context: Any, address: Any, vector: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = code.pointer(builder, args[0], code.vector_type(vector.bits))
        builder.store(args[1], pointer, align=vector.bits // 8)

    return types.void(types.int64, vector), codegen


def _load_lanes(typing_context: Any, address: Any, lanes: Any, bits: Any) -> Any:
    width = bits.literal_value
    vector, count = code.vector_type(width), code.VECTOR_BITS // width

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = code.pointer(builder, args[0], vector)
        result = cgutils.alloca_once(builder, vector)
        full = builder.icmp_signed("==", args[1], ir.Constant(code.I64, count))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(builder.load(pointer, align=width // 8), result)
            with otherwise:
                mask = ir.VectorType(code.I1, count)
                kind = ir.FunctionType(vector, [pointer.type, code.I32, mask, vector])
                name = f"llvm.masked.load.v{count}f{width}.p0"
                function = cgutils.get_or_insert_function(builder.module, kind, name)
                alignment = ir.Constant(code.I32, width // 8)
                where = code.lane_mask(builder, args[1], width)
                loaded = builder.call(
                    function, [pointer, alignment, where, ir.Constant(vector, [0.0] * count)]
                )
                builder.store(loaded, result)
        return builder.load(result)

    return VectorType(width)(types.int64, types.int64, bits), codegen


def _store_lanes(typing_context: Any, address: Any, lanes: Any, vector: Any) -> Any:
    width = vector.bits
    kind_of_vector, count = code.vector_type(width), code.VECTOR_BITS // width

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = code.pointer(builder, args[0], kind_of_vector)
        full = builder.icmp_signed("==", args[1], ir.Constant(code.I64, count))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(args[2], pointer, align=width // 8)
            with otherwise:
                mask = ir.VectorType(code.I1, count)
                kind = ir.FunctionType(
                    ir.VoidType(), [kind_of_vector, pointer.type, code.I32, mask]
                )
                name = f"llvm.masked.store.v{count}f{width}.p0"
                function = cgutils.get_or_insert_function(builder.module, kind, name)
                alignment = ir.Constant(code.I32, width // 8)
                where = code.lane_mask(builder, args[1], width)
                builder.call(function, [args[2], pointer, alignment, where])

    return types.void(types.int64, types.int64, vector), codegen


def _splat_load(typing_context: Any, address: Any, bits: Any) -> Any:
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return code.splat(
            builder, builder.load(code.pointer(builder, args[0], code.FLOATS[width])), width
        )

    return VectorType(width)(types.int64, bits), codegen


def _narrow(builder: Any, number: Any, bits: int) -> Any:
    return number if bits == 64 else builder.fptrunc(number, code.FLOATS[bits])


def _splat_value(typing_context: Any, value: Any, bits: Any) -> Any:
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return code.splat(builder, _narrow(builder, args[0], width), width)

    return VectorType(width)(types.float64, bits), codegen


def _copy_scaled(typing_context: Any, target: Any, source: Any, bits: Any, factor: Any) -> Any:
    width = bits.literal_value
    scalar = code.FLOATS[width]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        value = builder.load(code.pointer(builder, args[1], scalar))
        scaled = builder.fmul(value, _narrow(builder, args[3], width))
        builder.store(scaled, code.pointer(builder, args[0], scalar))

    return types.void(types.int64, types.int64, bits, types.float64), codegen


def _store_sum(typing_context: Any, address: Any, vector: Any) -> Any:
    width = vector.bits
    kind = ir.FunctionType(code.FLOATS[width], [code.FLOATS[width], code.vector_type(width)])
    name = f"llvm.vector.reduce.fadd.v{code.VECTOR_BITS // width}f{width}"

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        # "reassoc" makes it a tree of fixed shape instead of a chain.
        zero = ir.Constant(code.FLOATS[width], 0.0)
        total = builder.call(function, [zero, args[1]], fastmath=("reassoc",))
        builder.store(total, code.pointer(builder, args[0], code.FLOATS[width]))

    return types.void(types.int64, vector), codegen


def _prefetch(to_write: int) -> Any:
    def resolve(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
            pointer = code.pointer(builder, args[0], code.I64)
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, code.I32, code.I32, code.I32])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            keep, data = 3, 1
            hints = [ir.Constant(code.I32, hint) for hint in (to_write, keep, data)]
            builder.call(function, [pointer, *hints])

        return types.void(types.int64), codegen

    return intrinsic(resolve)


def _load_int(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(code.pointer(builder, args[0], code.I64))

    return types.int64(types.int64), codegen


def _fetch_increment(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = code.pointer(builder, args[0], code.I64)
        return builder.atomic_rmw("add", pointer, ir.Constant(code.I64, 1), "seq_cst")

    return types.int64(types.int64), codegen


def _call_kernel_at(typing_context: Any, address: Any, block: Any, scratch: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        kernel = ir.FunctionType(ir.VoidType(), [code.I64, code.I64])
        builder.call(builder.inttoptr(args[0], kernel.as_pointer()), args[1:])

    return types.void(types.int64, types.int64, types.int64), codegen


load: Any = intrinsic(prefer_literal=True)(_load)  #: (address, bits)
store: Any = intrinsic(_store)  #: (address, vector)
load_lanes: Any = intrinsic(prefer_literal=True)(_load_lanes)  #: (address, lanes, bits): rest is 0
store_lanes: Any = intrinsic(_store_lanes)  #: (address, lanes, vector): the first lanes only
splat_load: Any = intrinsic(prefer_literal=True)(_splat_load)  #: (address, bits): one float
splat: Any = intrinsic(prefer_literal=True)(_splat_value)  #: (float, bits)
copy_scaled: Any = intrinsic(prefer_literal=True)(_copy_scaled)  #: *target = factor * *source
store_sum: Any = intrinsic(_store_sum)  #: (address, vector): stores the sum of the lanes
prefetch: Any = _prefetch(0)  #: (address): of a line that will be read; any address will do
prefetch_to_write: Any = _prefetch(1)  #: (address): of a line that will be written
load_int: Any = intrinsic(_load_int)  #: (address)
call_kernel_at: Any = intrinsic(_call_kernel_at)  #: (address of a kernel, block, scratch)
fetch_increment: Any = intrinsic(_fetch_increment)  #: (address): atomically, returns the old value


def _register_operator(function: Any, method: str) -> None:
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and all(isinstance(arg, VectorType) for arg in args):
                return signature(args[0], *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, method)(*args)

    infer_global(function)(_Template)
    lower_builtin(function, VectorType, VectorType)(lower)


_register_operator(operator.add, "fadd")
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")
