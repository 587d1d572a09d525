"""Explicit SIMD for Numba kernels: one vector type, and the few operations the kernels need.

Numba leaves vectorisation to LLVM's loop vectoriser, which cannot keep a sum over states in
registers while it runs along channels. These intrinsics emit LLVM vectors of 512 bits directly
(16 float32 or 8 float64 lanes); LLVM maps them to what the machine has (AVX-512, pairs of AVX2
registers, fours of NEON ones). Memory is addressed by integers, as ``Tensor.data_ptr`` gives them.
``bits``, the width of a float, is always a compile-time constant.

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

VECTOR_BITS = 512
LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
FLOATS = {32: ir.FloatType(), 64: ir.DoubleType()}

# --- LLVM code, as functions of an IR builder -----------------------------------------------------

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


def _vector_type(bits: int) -> ir.VectorType:
    return ir.VectorType(FLOATS[bits], VECTOR_BITS // bits)


def _constant(value: float, bits: int) -> Any:
    return ir.Constant(_vector_type(bits), [value] * (VECTOR_BITS // bits))


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


def _lane_mask(builder: Any, lanes: Any, bits: int) -> Any:
    count = VECTOR_BITS // bits
    numbers = ir.Constant(ir.VectorType(I32, count), list(range(count)))
    return builder.icmp_unsigned(
        "<", numbers, _broadcast(builder, builder.trunc(lanes, I32), count)
    )


def _narrow(builder: Any, number: Any, bits: int) -> Any:
    return number if bits == 64 else builder.fptrunc(number, FLOATS[bits])


def _emit_fma(builder: Any, a: Any, b: Any, c: Any, bits: int) -> Any:
    # fmuladd fuses where the machine can and never calls a library where it cannot.
    name = f"llvm.fmuladd.v{VECTOR_BITS // bits}f{bits}"
    return _call(builder, name, _vector_type(bits), [a, b, c])


def _emit_polynomial(builder: Any, r: Any, bits: int) -> Any:
    *rest, result = (_constant(c, bits) for c in _EXP2_COEFFICIENTS[bits])
    for coefficient in reversed(rest):
        result = _emit_fma(builder, result, r, coefficient, bits)
    return result


def _has_avx512() -> bool:
    # The target that Numba compiles for, which NUMBA_CPU_NAME may have narrowed.
    return "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[-1]


def _emit_exp2(builder: Any, x: Any, bits: int) -> Any:
    return (_emit_exp2_avx512 if _has_avx512() else _emit_exp2_portable)(builder, x, bits)


def _emit_exp2_avx512(builder: Any, x: Any, bits: int) -> Any:
    # AVX-512 rounds and scales by a power of two in one instruction each, at the edges too.
    vector, lanes = _vector_type(bits), VECTOR_BITS // bits
    nearest = _call(builder, f"llvm.rint.v{lanes}f{bits}", vector, [x])
    result = _emit_polynomial(builder, builder.fsub(x, nearest), bits)
    all_lanes, current_rounding = ir.Constant(ir.IntType(lanes), -1), ir.Constant(I32, 4)
    arguments = [result, nearest, _constant(0.0, bits), all_lanes, current_rounding]
    name = f"llvm.x86.avx512.mask.scalef.{'ps' if bits == 32 else 'pd'}.512"
    return _call(builder, name, vector, arguments)


def _emit_exp2_portable(builder: Any, x: Any, bits: int) -> Any:
    low, high = (_constant(edge, bits) for edge in _EXP2_RANGE[bits])
    mantissa = _MANTISSA_BITS[bits]
    # Both comparisons are false for NaN, which therefore passes through.
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    # Adding 1.5 * 2**mantissa leaves the nearest integer in the lowest bits.
    shifter = _constant(1.5 * 2.0**mantissa, bits)
    shifted = builder.fadd(x, shifter)
    result = _emit_polynomial(builder, builder.fsub(x, builder.fsub(shifted, shifter)), bits)
    integers = ir.VectorType(ir.IntType(bits), VECTOR_BITS // bits)
    shift = ir.Constant(integers, [mantissa] * (VECTOR_BITS // bits))
    exponent = builder.shl(builder.bitcast(shifted, integers), shift)
    total = builder.add(builder.bitcast(result, integers), exponent)
    return builder.bitcast(total, _vector_type(bits))


def _emit_exp_minus_abs(builder: Any, x: Any, bits: int) -> Any:
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    minus_abs = builder.select(negative, x, builder.fneg(x))
    return _emit_exp2(builder, builder.fmul(minus_abs, _constant(LOG2_E, bits)), bits)


def _emit_sigmoid(builder: Any, x: Any, e: Any, bits: int) -> Any:
    # Exact at both ends.
    one = _constant(1.0, bits)
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    return builder.fdiv(builder.select(negative, e, one), builder.fadd(one, e))


def _emit_softplus(builder: Any, x: Any, e: Any, bits: int) -> Any:
    # log(1 + exp(x)) = max(x, 0) + log(1 + e)
    s = builder.fdiv(e, builder.fadd(e, _constant(2.0, bits)))
    square = builder.fmul(s, s)
    terms = _LOG1P_TERMS[bits]
    series = _constant(1.0 / (2 * terms + 1), bits)
    for k in reversed(range(terms)):
        series = _emit_fma(builder, series, square, _constant(1.0 / (2 * k + 1), bits), bits)
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    positive_part = builder.select(negative, _constant(0.0, bits), x)
    return _emit_fma(builder, builder.fadd(s, s), series, positive_part, bits)


# --- Numba's vector type and its operators --------------------------------------------------------


class VectorType(types.Type):
    """Numba's type of a 512-bit vector of floats.

    Args:
        bits: Width of one float, 32 or 64.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__(name=f"Vector{bits}")


@register_model(VectorType)
def _vector_model(manager: Any, numba_type: VectorType) -> Any:
    return models.PrimitiveModel(manager, numba_type, _vector_type(numba_type.bits))


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


# --- Intrinsics -----------------------------------------------------------------------------------

_intrinsic: Any = intrinsic  # Numba's type of it has the first argument, which Numba passes


def _vector_math(emit: Callable[..., Any], n_vectors: int) -> Any:
    """Make an intrinsic that maps vectors to a vector; ``emit(builder, *vectors, bits)``."""

    def resolve(first: Any) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, *args, first.bits)

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
def load(typing_context: Any, address: Any, bits: Any) -> Any:
    """Load a vector."""
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], _vector_type(width)), align=width // 8)

    return VectorType(width)(types.int64, bits), codegen


@_intrinsic
def store(typing_context: Any, address: Any, vector: Any) -> Any:
    """Store a vector."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = _pointer(builder, args[0], _vector_type(vector.bits))
        builder.store(args[1], pointer, align=vector.bits // 8)

    return types.void(types.int64, vector), codegen


@_intrinsic(prefer_literal=True)
def load_lanes(typing_context: Any, address: Any, lanes: Any, bits: Any) -> Any:
    """Load the first lanes of a vector; the rest is 0."""
    width = bits.literal_value
    vector, count = _vector_type(width), VECTOR_BITS // width

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], vector)
        result = cgutils.alloca_once(builder, vector)
        full = builder.icmp_signed("==", args[1], ir.Constant(I64, count))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(builder.load(pointer, align=width // 8), result)
            with otherwise:
                alignment = ir.Constant(I32, width // 8)
                arguments = [pointer, alignment, _lane_mask(builder, args[1], width)]
                arguments.append(_constant(0.0, width))
                name = f"llvm.masked.load.v{count}f{width}.p0"
                builder.store(_call(builder, name, vector, arguments), result)
        return builder.load(result)

    return VectorType(width)(types.int64, types.int64, bits), codegen


@_intrinsic
def store_lanes(typing_context: Any, address: Any, lanes: Any, vector: Any) -> Any:
    """Store the first lanes of a vector."""
    width, count = vector.bits, VECTOR_BITS // vector.bits

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = _pointer(builder, args[0], _vector_type(width))
        full = builder.icmp_signed("==", args[1], ir.Constant(I64, count))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(args[2], pointer, align=width // 8)
            with otherwise:
                alignment = ir.Constant(I32, width // 8)
                arguments = [args[2], pointer, alignment, _lane_mask(builder, args[1], width)]
                name = f"llvm.masked.store.v{count}f{width}.p0"
                _call(builder, name, ir.VoidType(), arguments)

    return types.void(types.int64, types.int64, vector), codegen


@_intrinsic(prefer_literal=True)
def splat_load(typing_context: Any, address: Any, bits: Any) -> Any:
    """Load one float into every lane."""
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = builder.load(_pointer(builder, args[0], FLOATS[width]))
        return _broadcast(builder, number, VECTOR_BITS // width)

    return VectorType(width)(types.int64, bits), codegen


@_intrinsic(prefer_literal=True)
def splat(typing_context: Any, value: Any, bits: Any) -> Any:
    """Put one float into every lane."""
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _broadcast(builder, _narrow(builder, args[0], width), VECTOR_BITS // width)

    return VectorType(width)(types.float64, bits), codegen


@_intrinsic(prefer_literal=True)
def copy_scaled(typing_context: Any, target: Any, source: Any, bits: Any, factor: Any) -> Any:
    """Store one float times a factor: ``*target = factor * *source``."""
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        value = builder.load(_pointer(builder, args[1], FLOATS[width]))
        scaled = builder.fmul(value, _narrow(builder, args[3], width))
        builder.store(scaled, _pointer(builder, args[0], FLOATS[width]))

    return types.void(types.int64, types.int64, bits, types.float64), codegen


@_intrinsic
def store_sum(typing_context: Any, address: Any, vector: Any) -> Any:
    """Store the sum of a vector's lanes."""
    scalar, name = FLOATS[vector.bits], f"v{VECTOR_BITS // vector.bits}f{vector.bits}"

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        # "reassoc" makes it a tree of fixed shape instead of a chain.
        operands = [ir.Constant(scalar, 0.0), args[1]]
        name_of_sum = f"llvm.vector.reduce.fadd.{name}"
        total = _call(builder, name_of_sum, scalar, operands, fastmath=("reassoc",))
        builder.store(total, _pointer(builder, args[0], scalar))

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


# --- Arrays of channels ---------------------------------------------------------------------------


@register_jitable
def pack_channels(
    target: int, source: int, channels: int, n: int, factor: float, bits: int
) -> None:
    """Copy a contiguous (channels, n) array, times a factor, to n vectors a block of channels.

    Lanes beyond the last channel are 0.
    """
    literally(bits)
    size, width = bits // 8, 512 // bits
    zero = splat(0.0, bits)
    for i in range((channels + width - 1) // width * n):
        store(target + 64 * i, zero)
    for channel in range(channels):
        place = target + 64 * n * (channel // width) + size * (channel % width)
        for i in range(n):
            copy_scaled(place + 64 * i, source + size * (channel * n + i), bits, factor)


@register_jitable
def unpack_channels(target: int, source: int, channels: int, n: int, bits: int) -> None:
    """Copy n vectors a block of channels back to a contiguous (channels, n) array."""
    literally(bits)
    size, width = bits // 8, 512 // bits
    for channel in range(channels):
        place = source + 64 * n * (channel // width) + size * (channel % width)
        for i in range(n):
            copy_scaled(target + size * (channel * n + i), place + 64 * i, bits, 1.0)
