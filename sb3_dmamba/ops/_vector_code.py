"""The LLVM code behind the kernels' vector operations, as functions of an IR builder.

``bits`` is the width of a float throughout; vectors have ``VECTOR_BITS`` bits.
"""

# llvmlite and Numba's internals have no types.
# mypy: disable-error-code="no-untyped-call,import-untyped,misc"

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

VECTOR_BITS = 512
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


def vector_type(bits: int) -> ir.VectorType:
    return ir.VectorType(FLOATS[bits], VECTOR_BITS // bits)


def splat(builder: Any, scalar: Any, bits: int) -> Any:
    empty = ir.Constant(vector_type(bits), ir.Undefined)
    lanes = VECTOR_BITS // bits
    first = builder.insert_element(empty, scalar, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, empty, zeros)


def _constant(value: float, bits: int) -> Any:
    return ir.Constant(vector_type(bits), [value] * (VECTOR_BITS // bits))


def fma(builder: Any, a: Any, b: Any, c: Any, bits: int) -> Any:
    # fmuladd fuses where the machine can and never calls a library where it cannot.
    vector = vector_type(bits)
    kind = ir.FunctionType(vector, [vector] * 3)
    name = f"llvm.fmuladd.v{VECTOR_BITS // bits}f{bits}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def _polynomial(builder: Any, r: Any, bits: int) -> Any:
    *rest, result = (_constant(c, bits) for c in _EXP2_COEFFICIENTS[bits])
    for coefficient in reversed(rest):
        result = fma(builder, result, r, coefficient, bits)
    return result


def _has_avx512() -> bool:
    # The target that Numba compiles for, which NUMBA_CPU_NAME may have narrowed.
    return "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[-1]


def _exp2_avx512(builder: Any, x: Any, bits: int) -> Any:
    # AVX-512 rounds and scales by a power of two in one instruction each, at the edges too.
    vector, lanes = vector_type(bits), VECTOR_BITS // bits
    round_type = ir.FunctionType(vector, [vector])
    round_name = f"llvm.rint.v{lanes}f{bits}"
    nearest = builder.call(
        cgutils.get_or_insert_function(builder.module, round_type, round_name), [x]
    )
    result = _polynomial(builder, builder.fsub(x, nearest), bits)
    mask = ir.IntType(lanes)
    scale_type = ir.FunctionType(vector, [vector, vector, vector, mask, I32])
    scale_name = f"llvm.x86.avx512.mask.scalef.{'ps' if bits == 32 else 'pd'}.512"
    scale = cgutils.get_or_insert_function(builder.module, scale_type, scale_name)
    current_rounding = ir.Constant(I32, 4)
    arguments = [result, nearest, _constant(0.0, bits), ir.Constant(mask, -1), current_rounding]
    return builder.call(scale, arguments)


def _exp2_portable(builder: Any, x: Any, bits: int) -> Any:
    low, high = (_constant(edge, bits) for edge in _EXP2_RANGE[bits])
    mantissa = _MANTISSA_BITS[bits]
    # Both comparisons are false for NaN, which therefore passes through.
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    # Adding 1.5 * 2**mantissa leaves the nearest integer in the lowest bits.
    shifter = _constant(1.5 * 2.0**mantissa, bits)
    shifted = builder.fadd(x, shifter)
    result = _polynomial(builder, builder.fsub(x, builder.fsub(shifted, shifter)), bits)
    integers = ir.VectorType(ir.IntType(bits), VECTOR_BITS // bits)
    shift = ir.Constant(integers, [mantissa] * (VECTOR_BITS // bits))
    exponent = builder.shl(builder.bitcast(shifted, integers), shift)
    total = builder.add(builder.bitcast(result, integers), exponent)
    return builder.bitcast(total, vector_type(bits))


def exp2(builder: Any, x: Any, bits: int) -> Any:
    return (_exp2_avx512 if _has_avx512() else _exp2_portable)(builder, x, bits)


def sigmoid_from_exp(builder: Any, x: Any, e: Any, bits: int) -> Any:
    """Return sigmoid(x), given e = exp(-|x|): exact at both ends."""
    one = _constant(1.0, bits)
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    return builder.fdiv(builder.select(negative, e, one), builder.fadd(one, e))


def exp_minus_abs(builder: Any, x: Any, bits: int) -> Any:
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    minus_abs = builder.select(negative, x, builder.fneg(x))
    return exp2(builder, builder.fmul(minus_abs, _constant(LOG2_E, bits)), bits)


def softplus_from_exp(builder: Any, x: Any, e: Any, bits: int) -> Any:
    """Return log(1 + exp(x)) = max(x, 0) + log(1 + e), given e = exp(-|x|)."""
    s = builder.fdiv(e, builder.fadd(e, _constant(2.0, bits)))
    square = builder.fmul(s, s)
    terms = _LOG1P_TERMS[bits]
    series = _constant(1.0 / (2 * terms + 1), bits)
    for k in reversed(range(terms)):
        series = fma(builder, series, square, _constant(1.0 / (2 * k + 1), bits), bits)
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    positive_part = builder.select(negative, _constant(0.0, bits), x)
    return fma(builder, builder.fadd(s, s), series, positive_part, bits)


def lane_mask(builder: Any, lanes: Any, bits: int) -> Any:
    count = VECTOR_BITS // bits
    numbers = ir.Constant(ir.VectorType(I32, count), list(range(count)))
    narrow = builder.trunc(lanes, I32)
    empty = ir.Constant(ir.VectorType(I32, count), ir.Undefined)
    first = builder.insert_element(empty, narrow, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, count), [0] * count)
    return builder.icmp_unsigned("<", numbers, builder.shuffle_vector(first, empty, zeros))


def pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())
