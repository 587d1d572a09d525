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

import math
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

VECTOR_BITS = 512
LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_FLOATS = {32: ir.FloatType(), 64: ir.DoubleType()}
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
    """Numba's type of a 512-bit vector of floats.

    Args:
        bits: Width of one float, 32 or 64.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__(name=f"Vector{bits}")


def _llvm_type(bits: int) -> ir.VectorType:
    return ir.VectorType(_FLOATS[bits], VECTOR_BITS // bits)


def _vector_model(manager: Any, numba_type: VectorType) -> Any:
    return models.PrimitiveModel(manager, numba_type, _llvm_type(numba_type.bits))


register_model(VectorType)(_vector_model)


# --- code generation shared by the intrinsics --------------------------------------------------


def _splat(builder: Any, scalar: Any, bits: int) -> Any:
    empty = ir.Constant(_llvm_type(bits), ir.Undefined)
    lanes = VECTOR_BITS // bits
    first = builder.insert_element(empty, scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, empty, zeros)


def _constant(value: float, bits: int) -> Any:
    return ir.Constant(_llvm_type(bits), [value] * (VECTOR_BITS // bits))


def _fma(builder: Any, a: Any, b: Any, c: Any, bits: int) -> Any:
    # fmuladd fuses where the machine can and never calls a library where it cannot.
    vector = _llvm_type(bits)
    kind = ir.FunctionType(vector, [vector] * 3)
    name = f"llvm.fmuladd.v{VECTOR_BITS // bits}f{bits}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def _polynomial(builder: Any, r: Any, bits: int) -> Any:
    *rest, result = (_constant(c, bits) for c in _EXP2_COEFFICIENTS[bits])
    for coefficient in reversed(rest):
        result = _fma(builder, result, r, coefficient, bits)
    return result


def _has_avx512() -> bool:
    # The target that Numba compiles for, which NUMBA_CPU_NAME may have narrowed.
    return "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[-1]


def _exp2_avx512(builder: Any, x: Any, bits: int) -> Any:
    # AVX-512 rounds and scales by a power of two in one instruction each, at the edges too.
    vector, lanes = _llvm_type(bits), VECTOR_BITS // bits
    round_type = ir.FunctionType(vector, [vector])
    round_name = f"llvm.rint.v{lanes}f{bits}"
    nearest = builder.call(
        cgutils.get_or_insert_function(builder.module, round_type, round_name), [x]
    )
    result = _polynomial(builder, builder.fsub(x, nearest), bits)
    mask = ir.IntType(lanes)
    scale_type = ir.FunctionType(vector, [vector, vector, vector, mask, _I32])
    scale_name = f"llvm.x86.avx512.mask.scalef.{'ps' if bits == 32 else 'pd'}.512"
    scale = cgutils.get_or_insert_function(builder.module, scale_type, scale_name)
    current_rounding = ir.Constant(_I32, 4)
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
    return builder.bitcast(total, _llvm_type(bits))


def _exp2(builder: Any, x: Any, bits: int) -> Any:
    return (_exp2_avx512 if _has_avx512() else _exp2_portable)(builder, x, bits)


def _sigmoid_from_exp(builder: Any, x: Any, e: Any, bits: int) -> Any:
    """Return sigmoid(x), given e = exp(-|x|): exact at both ends."""
    one = _constant(1.0, bits)
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    return builder.fdiv(builder.select(negative, e, one), builder.fadd(one, e))


def _exp_minus_abs(builder: Any, x: Any, bits: int) -> Any:
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    minus_abs = builder.select(negative, x, builder.fneg(x))
    return _exp2(builder, builder.fmul(minus_abs, _constant(LOG2_E, bits)), bits)


def _softplus_from_exp(builder: Any, x: Any, e: Any, bits: int) -> Any:
    """Return log(1 + exp(x)) = max(x, 0) + log(1 + e), given e = exp(-|x|)."""
    s = builder.fdiv(e, builder.fadd(e, _constant(2.0, bits)))
    square = builder.fmul(s, s)
    terms = _LOG1P_TERMS[bits]
    series = _constant(1.0 / (2 * terms + 1), bits)
    for k in reversed(range(terms)):
        series = _fma(builder, series, square, _constant(1.0 / (2 * k + 1), bits), bits)
    negative = builder.fcmp_ordered("<", x, _constant(0.0, bits))
    positive_part = builder.select(negative, _constant(0.0, bits), x)
    return _fma(builder, builder.fadd(s, s), series, positive_part, bits)


def _masked(builder: Any, lanes: Any, bits: int) -> Any:
    count = VECTOR_BITS // bits
    numbers = ir.Constant(ir.VectorType(_I32, count), list(range(count)))
    narrow = builder.trunc(lanes, _I32)
    empty = ir.Constant(ir.VectorType(_I32, count), ir.Undefined)
    first = builder.insert_element(empty, narrow, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, count), [0] * count)
    return builder.icmp_unsigned("<", numbers, builder.shuffle_vector(first, empty, zeros))


def _pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


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


fma: Any = _vector_math(_fma, 3)  #: a * b + c
exp2: Any = _vector_math(_exp2, 1)  #: 2**x
exp_minus_abs: Any = _vector_math(_exp_minus_abs, 1)  #: exp(-|x|)
sigmoid_from_exp: Any = _vector_math(_sigmoid_from_exp, 2)  #: (x, exp(-|x|)) -> sigmoid(x)
softplus_from_exp: Any = _vector_math(_softplus_from_exp, 2)  #: (x, exp(-|x|)) -> log(1 + exp(x))


def _load(typing_context: Any, address: Any, bits: Any) -> Any:
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], _llvm_type(width)), align=width // 8)

    return VectorType(width)(types.int64, bits), codegen


def _store(typing_context: Any, address: Any, vector: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = _pointer(builder, args[0], _llvm_type(vector.bits))
        builder.store(args[1], pointer, align=vector.bits // 8)

    return types.void(types.int64, vector), codegen


def _load_lanes(typing_context: Any, address: Any, lanes: Any, bits: Any) -> Any:
    width = bits.literal_value
    vector, count = _llvm_type(width), VECTOR_BITS // width

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], vector)
        result = cgutils.alloca_once(builder, vector)
        full = builder.icmp_signed("==", args[1], ir.Constant(_I64, count))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(builder.load(pointer, align=width // 8), result)
            with otherwise:
                mask = ir.VectorType(_I1, count)
                kind = ir.FunctionType(vector, [pointer.type, _I32, mask, vector])
                name = f"llvm.masked.load.v{count}f{width}.p0"
                function = cgutils.get_or_insert_function(builder.module, kind, name)
                alignment = ir.Constant(_I32, width // 8)
                where = _masked(builder, args[1], width)
                loaded = builder.call(
                    function, [pointer, alignment, where, ir.Constant(vector, [0.0] * count)]
                )
                builder.store(loaded, result)
        return builder.load(result)

    return VectorType(width)(types.int64, types.int64, bits), codegen


def _store_lanes(typing_context: Any, address: Any, lanes: Any, vector: Any) -> Any:
    width = vector.bits
    kind_of_vector, count = _llvm_type(width), VECTOR_BITS // width

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = _pointer(builder, args[0], kind_of_vector)
        full = builder.icmp_signed("==", args[1], ir.Constant(_I64, count))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(args[2], pointer, align=width // 8)
            with otherwise:
                mask = ir.VectorType(_I1, count)
                kind = ir.FunctionType(ir.VoidType(), [kind_of_vector, pointer.type, _I32, mask])
                name = f"llvm.masked.store.v{count}f{width}.p0"
                function = cgutils.get_or_insert_function(builder.module, kind, name)
                alignment = ir.Constant(_I32, width // 8)
                where = _masked(builder, args[1], width)
                builder.call(function, [args[2], pointer, alignment, where])

    return types.void(types.int64, types.int64, vector), codegen


def _splat_load(typing_context: Any, address: Any, bits: Any) -> Any:
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, builder.load(_pointer(builder, args[0], _FLOATS[width])), width)

    return VectorType(width)(types.int64, bits), codegen


def _narrow(builder: Any, number: Any, bits: int) -> Any:
    return number if bits == 64 else builder.fptrunc(number, _FLOATS[bits])


def _splat_value(typing_context: Any, value: Any, bits: Any) -> Any:
    width = bits.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, _narrow(builder, args[0], width), width)

    return VectorType(width)(types.float64, bits), codegen


def _copy_scaled(typing_context: Any, target: Any, source: Any, bits: Any, factor: Any) -> Any:
    width = bits.literal_value
    scalar = _FLOATS[width]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        value = builder.load(_pointer(builder, args[1], scalar))
        scaled = builder.fmul(value, _narrow(builder, args[3], width))
        builder.store(scaled, _pointer(builder, args[0], scalar))

    return types.void(types.int64, types.int64, bits, types.float64), codegen


def _store_sum(typing_context: Any, address: Any, vector: Any) -> Any:
    width = vector.bits
    kind = ir.FunctionType(_FLOATS[width], [_FLOATS[width], _llvm_type(width)])
    name = f"llvm.vector.reduce.fadd.v{VECTOR_BITS // width}f{width}"

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> None:
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        # "reassoc" makes it a tree of fixed shape instead of a chain.
        zero = ir.Constant(_FLOATS[width], 0.0)
        total = builder.call(function, [zero, args[1]], fastmath=("reassoc",))
        builder.store(total, _pointer(builder, args[0], _FLOATS[width]))

    return types.void(types.int64, vector), codegen


def _load_int(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], _I64))

    return types.int64(types.int64), codegen


def _fetch_increment(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], _I64)
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "seq_cst")

    return types.int64(types.int64), codegen


load: Any = intrinsic(prefer_literal=True)(_load)  #: (address, bits)
store: Any = intrinsic(_store)  #: (address, vector)
load_lanes: Any = intrinsic(prefer_literal=True)(_load_lanes)  #: (address, lanes, bits): rest is 0
store_lanes: Any = intrinsic(_store_lanes)  #: (address, lanes, vector): the first lanes only
splat_load: Any = intrinsic(prefer_literal=True)(_splat_load)  #: (address, bits): one float
splat: Any = intrinsic(prefer_literal=True)(_splat_value)  #: (float, bits)
copy_scaled: Any = intrinsic(prefer_literal=True)(_copy_scaled)  #: *target = factor * *source
store_sum: Any = intrinsic(_store_sum)  #: (address, vector): stores the sum of the lanes
load_int: Any = intrinsic(_load_int)  #: (address)
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
