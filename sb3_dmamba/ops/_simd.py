"""Explicit SIMD for Numba kernels: one vector type, and the few operations the kernels need.

Numba leaves vectorisation to LLVM's loop vectoriser, which cannot keep a sum over states in
registers while it runs along channels. These intrinsics emit LLVM vectors directly; LLVM makes
several registers of what is wider than one (of 512 bits a pair of AVX2's, four of NEON's). Memory
is addressed by integers, as ``Tensor.data_ptr`` gives them. The vectors of a kernel are one
compile-time constant, ``kind``: 100 times a float's bits, plus lanes (3216 is 16 float32).

Imported only when a kernel is first needed, because it imports Numba.
"""

# llvmlite and Numba's internals have no types.
# mypy: disable-error-code="no-untyped-call,import-untyped,misc,untyped-decorator"

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import literally  # type: ignore[attr-defined]
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_jitable, register_model

LINE = 64  # bytes that a cache holds together: what is fetched ahead
LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
FLOATS = {32: ir.FloatType(), 64: ir.DoubleType()}


_MANTISSA_BITS = {32: 23, 64: 52}
# 2**r on [-0.5, 0.5]. float32: relative minimax fit of degree 5 with an exact constant term (error
# 9e-8, one rounding); float64: Taylor's series, whose first term left out is below 1e-17.
_EXP2_COEFFICIENTS = {
    32: (1.0, 0.693146977598, 0.240222420843, 0.0555073374453, 0.0096715127018, 0.00132647269346),
    64: tuple(LN_2**k / math.factorial(k) for k in range(15)),
}
# Below the first 2**x is 0, above the second infinite; the bit arithmetic is valid in between.
_EXP2_RANGE = {32: (-127.0, 128.0), 64: (-1023.0, 1024.0)}
# log(1 + e) = 2 s (1 + s^2/3 + s^4/5 + ...), s = e / (2 + e); s <= 1/3 because e <= 1.
_LOG1P_TERMS = {32: 8, 64: 17}


class VectorType(types.Type):
    """Numba's type of a vector of floats."""

    def __init__(self, kind: int) -> None:
        self.bits, self.lanes = divmod(kind, 100)
        self.scalar = FLOATS[self.bits]
        self.llvm = ir.VectorType(self.scalar, self.lanes)
        self.suffix = f"v{self.lanes}f{self.bits}"  # in the names of LLVM's functions
        super().__init__(name=f"Vector{kind}")


def _has_avx512() -> bool:
    # The target that Numba compiles for, which NUMBA_CPU_NAME may have narrowed.
    return "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[-1]


def fit_register(kind: int) -> int:
    """Return the kind with vectors of a register: 512 bits with AVX-512, else 256.

    For loops whose sums would not find room otherwise. Of NEON's 128-bit registers there are twice
    as many as of AVX2's.
    """
    bits, lanes = divmod(kind, 100)
    return 100 * bits + min(lanes, (512 if _has_avx512() else 256) // bits)


@register_jitable
def vector_sizes(kind: int) -> tuple[int, int, int]:
    """Return the bytes of a float, the lanes of a vector, and the bytes of a vector."""
    bits, lanes = kind // 100, kind % 100
    return bits // 8, lanes, bits // 8 * lanes


def _constant(value: float, vector: VectorType) -> Any:
    return ir.Constant(vector.llvm, [value] * vector.lanes)


def _pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def _call(builder: Any, name: str, result: Any, arguments: list[Any], **options: Any) -> Any:
    """Call one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, **options)


def _broadcast(builder: Any, scalar: Any, lanes: int) -> Any:
    empty = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, empty, zeros)


def _lane_mask(builder: Any, lanes: Any, vector: VectorType) -> Any:
    numbers = ir.Constant(ir.VectorType(I32, vector.lanes), list(range(vector.lanes)))
    return builder.icmp_unsigned(
        "<", numbers, _broadcast(builder, builder.trunc(lanes, I32), vector.lanes)
    )


def _narrow(builder: Any, number: Any, vector: VectorType) -> Any:
    return number if vector.bits == 64 else builder.fptrunc(number, vector.scalar)


def _emit_fma(builder: Any, a: Any, b: Any, c: Any, vector: VectorType) -> Any:
    # fmuladd fuses where the machine can and never calls a library where it cannot.
    return _call(builder, f"llvm.fmuladd.{vector.suffix}", vector.llvm, [a, b, c])


def _emit_polynomial(builder: Any, r: Any, vector: VectorType) -> Any:
    *rest, result = (_constant(c, vector) for c in _EXP2_COEFFICIENTS[vector.bits])
    for coefficient in reversed(rest):
        result = _emit_fma(builder, result, r, coefficient, vector)
    return result


def _emit_exp2(builder: Any, x: Any, vector: VectorType) -> Any:
    is_native = vector.lanes * vector.bits == 512 and _has_avx512()
    return (_emit_exp2_avx512 if is_native else _emit_exp2_portable)(builder, x, vector)


def _emit_exp2_avx512(builder: Any, x: Any, vector: VectorType) -> Any:
    # AVX-512 rounds and scales by a power of two in one instruction each, at the edges too.
    nearest = _call(builder, f"llvm.rint.{vector.suffix}", vector.llvm, [x])
    result = _emit_polynomial(builder, builder.fsub(x, nearest), vector)
    all_lanes, current_rounding = ir.Constant(ir.IntType(vector.lanes), -1), ir.Constant(I32, 4)
    arguments = [result, nearest, _constant(0.0, vector), all_lanes, current_rounding]
    name = f"llvm.x86.avx512.mask.scalef.{'ps' if vector.bits == 32 else 'pd'}.512"
    return _call(builder, name, vector.llvm, arguments)


def _emit_exp2_portable(builder: Any, x: Any, vector: VectorType) -> Any:
    low, high = (_constant(edge, vector) for edge in _EXP2_RANGE[vector.bits])
    mantissa = _MANTISSA_BITS[vector.bits]
    # Both comparisons are false for NaN, which therefore passes through.
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    # Adding 1.5 * 2**mantissa leaves the nearest integer in the lowest bits.
    shifter = _constant(1.5 * 2.0**mantissa, vector)
    shifted = builder.fadd(x, shifter)
    result = _emit_polynomial(builder, builder.fsub(x, builder.fsub(shifted, shifter)), vector)
    integers = ir.VectorType(ir.IntType(vector.bits), vector.lanes)
    shift = ir.Constant(integers, [mantissa] * vector.lanes)
    exponent = builder.shl(builder.bitcast(shifted, integers), shift)
    total = builder.add(builder.bitcast(result, integers), exponent)
    return builder.bitcast(total, vector.llvm)


def _emit_exp_minus_abs(builder: Any, x: Any, vector: VectorType) -> Any:
    negative = builder.fcmp_ordered("<", x, _constant(0.0, vector))
    minus_abs = builder.select(negative, x, builder.fneg(x))
    return _emit_exp2(builder, builder.fmul(minus_abs, _constant(LOG2_E, vector)), vector)


def _emit_sigmoid(builder: Any, x: Any, e: Any, vector: VectorType) -> Any:
    # Exact at both ends.
    one = _constant(1.0, vector)
    negative = builder.fcmp_ordered("<", x, _constant(0.0, vector))
    return builder.fdiv(builder.select(negative, e, one), builder.fadd(one, e))


def _emit_softplus(builder: Any, x: Any, e: Any, vector: VectorType) -> Any:
    # log(1 + exp(x)) = max(x, 0) + log(1 + e)
    s = builder.fdiv(e, builder.fadd(e, _constant(2.0, vector)))
    square = builder.fmul(s, s)
    terms = _LOG1P_TERMS[vector.bits]
    series = _constant(1.0 / (2 * terms + 1), vector)
    for k in reversed(range(terms)):
        series = _emit_fma(builder, series, square, _constant(1.0 / (2 * k + 1), vector), vector)
    negative = builder.fcmp_ordered("<", x, _constant(0.0, vector))
    positive_part = builder.select(negative, _constant(0.0, vector), x)
    return _emit_fma(builder, builder.fadd(s, s), series, positive_part, vector)


@register_model(VectorType)
def _vector_model(manager: Any, numba_type: VectorType) -> Any:
    return models.PrimitiveModel(manager, numba_type, numba_type.llvm)


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


_intrinsic: Any = intrinsic  # Numba's type of it has the first argument, which Numba passes


def _vector_math(emit: Callable[..., Any], n_vectors: int) -> Any:
    """Make an intrinsic that maps vectors to a vector; ``emit(builder, *vectors, type)``."""

    def resolve(first: Any) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, *args, first)

        return first(*[first] * n_vectors), codegen

    if n_vectors == 1:
        return intrinsic(lambda typing_context, x: resolve(x))
    if n_vectors == 2:
        return intrinsic(lambda typing_context, x, y: resolve(x))
    return intrinsic(lambda typing_context, x, y, z: resolve(x))


fma: Any = _vector_math(_emit_fma, 3)  #: a * b + c
exp2: Any = _vector_math(_emit_exp2, 1)  #: 2**x
exp_minus_abs: Any = _vector_math(_emit_exp_minus_abs, 1)  #: exp(-|x|)
sigmoid_from_exp: Any = _vector_math(_emit_sigmoid, 2)  #: (x, exp(-|x|)) -> sigmoid(x)
softplus_from_exp: Any = _vector_math(_emit_softplus, 2)  #: (x, exp(-|x|)) -> softplus(x)


@_intrinsic(prefer_literal=True)
def load(typing_context: Any, address: Any, kind: Any) -> Any:
    """Load a vector."""
    vector = VectorType(kind.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], vector.llvm), align=vector.bits // 8)

    return vector(types.int64, kind), codegen


@_intrinsic
def store(typing_context: Any, address: Any, vector: Any) -> Any:
    """Store a vector."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = _pointer(builder, args[0], vector.llvm)
        builder.store(args[1], pointer, align=vector.bits // 8)

    return types.void(types.int64, vector), codegen


@_intrinsic(prefer_literal=True)
def load_lanes(typing_context: Any, address: Any, lanes: Any, kind: Any) -> Any:
    """Load the first lanes of a vector; the rest is 0."""
    vector = VectorType(kind.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], vector.llvm)
        result = cgutils.alloca_once(builder, vector.llvm)
        full = builder.icmp_signed("==", args[1], ir.Constant(I64, vector.lanes))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(builder.load(pointer, align=vector.bits // 8), result)
            with otherwise:
                alignment = ir.Constant(I32, vector.bits // 8)
                arguments = [pointer, alignment, _lane_mask(builder, args[1], vector)]
                arguments.append(_constant(0.0, vector))
                name = f"llvm.masked.load.{vector.suffix}.p0"
                builder.store(_call(builder, name, vector.llvm, arguments), result)
        return builder.load(result)

    return vector(types.int64, types.int64, kind), codegen


@_intrinsic
def store_lanes(typing_context: Any, address: Any, lanes: Any, vector: Any) -> Any:
    """Store the first lanes of a vector."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = _pointer(builder, args[0], vector.llvm)
        full = builder.icmp_signed("==", args[1], ir.Constant(I64, vector.lanes))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(args[2], pointer, align=vector.bits // 8)
            with otherwise:
                alignment = ir.Constant(I32, vector.bits // 8)
                arguments = [args[2], pointer, alignment, _lane_mask(builder, args[1], vector)]
                name = f"llvm.masked.store.{vector.suffix}.p0"
                _call(builder, name, ir.VoidType(), arguments)

    return types.void(types.int64, types.int64, vector), codegen


@_intrinsic(prefer_literal=True)
def splat_load(typing_context: Any, address: Any, kind: Any) -> Any:
    """Load one float into every lane."""
    vector = VectorType(kind.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = builder.load(_pointer(builder, args[0], vector.scalar))
        return _broadcast(builder, number, vector.lanes)

    return vector(types.int64, kind), codegen


@_intrinsic(prefer_literal=True)
def splat(typing_context: Any, value: Any, kind: Any) -> Any:
    """Put one float into every lane."""
    vector = VectorType(kind.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _broadcast(builder, _narrow(builder, args[0], vector), vector.lanes)

    return vector(types.float64, kind), codegen


@_intrinsic(prefer_literal=True)
def copy_scaled(typing_context: Any, target: Any, source: Any, kind: Any, factor: Any) -> Any:
    """Store one float times a factor: ``*target = factor * *source``."""
    vector = VectorType(kind.literal_value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        value = builder.load(_pointer(builder, args[1], vector.scalar))
        scaled = builder.fmul(value, _narrow(builder, args[3], vector))
        builder.store(scaled, _pointer(builder, args[0], vector.scalar))

    return types.void(types.int64, types.int64, kind, types.float64), codegen


@_intrinsic
def store_sum(typing_context: Any, address: Any, vector: Any) -> Any:
    """Store the sum of a vector's lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        # "reassoc" makes it a tree of fixed shape instead of a chain.
        operands = [ir.Constant(vector.scalar, 0.0), args[1]]
        name = f"llvm.vector.reduce.fadd.{vector.suffix}"
        total = _call(builder, name, vector.scalar, operands, fastmath=("reassoc",))
        builder.store(total, _pointer(builder, args[0], vector.scalar))

    return types.void(types.int64, vector), codegen


def _prefetch(to_write: int) -> Any:
    def resolve(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
            keep, data = 3, 1
            hints = [ir.Constant(I32, hint) for hint in (to_write, keep, data)]
            arguments = [_pointer(builder, args[0], I64), *hints]
            _call(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)

        return types.void(types.int64), codegen

    return intrinsic(resolve)


prefetch: Any = _prefetch(0)  #: (address): of a line that will be read; any address will do
prefetch_to_write: Any = _prefetch(1)  #: (address): of a line that will be written


@_intrinsic
def load_int(typing_context: Any, address: Any) -> Any:
    """Load an int64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], I64))

    return types.int64(types.int64), codegen


@_intrinsic
def fetch_increment(typing_context: Any, address: Any) -> Any:
    """Add 1 to an int64, atomically, and return what it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], I64)
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "seq_cst")

    return types.int64(types.int64), codegen


@_intrinsic
def call_kernel_at(typing_context: Any, address: Any, block: Any, scratch: Any) -> Any:
    """Call the kernel at an address with its argument block and scratch."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        kernel = ir.FunctionType(ir.VoidType(), [I64, I64])
        builder.call(_pointer(builder, args[0], kernel), args[1:])

    return types.void(types.int64, types.int64, types.int64), codegen


@register_jitable
def pack_channels(
    target: int, source: int, channels: int, n: int, factor: float, kind: int
) -> None:
    """Copy a contiguous (channels, n) array, times a factor, to n vectors a block of channels.

    Lanes beyond the last channel are 0.
    """
    literally(kind)
    size, width, vector = vector_sizes(kind)
    zero = splat(0.0, kind)
    for i in range((channels + width - 1) // width * n):
        store(target + vector * i, zero)
    for channel in range(channels):
        place = target + vector * n * (channel // width) + size * (channel % width)
        for i in range(n):
            copy_scaled(place + vector * i, source + size * (channel * n + i), kind, factor)


@register_jitable
def unpack_channels(target: int, source: int, channels: int, n: int, kind: int) -> None:
    """Copy n vectors a block of channels back to a contiguous (channels, n) array."""
    literally(kind)
    size, width, vector = vector_sizes(kind)
    for channel in range(channels):
        place = source + vector * n * (channel // width) + size * (channel % width)
        for i in range(n):
            copy_scaled(target + size * (channel * n + i), place + vector * i, kind, 1.0)
