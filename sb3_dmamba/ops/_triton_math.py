"""Functions that the Triton kernels share; all of them run inside kernels."""

import triton
import triton.language as tl


@triton.jit
def load(pointer, mask, DOUBLE: tl.constexpr):
    """Load in the dtype to compute in, with zeros where the mask is False."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float64 if DOUBLE else tl.float32)


@triton.jit
def below(index, size, valid):
    """Compute the mask of the entries of ``index`` below ``size``; none where not ``valid``."""
    return index < tl.where(valid, size, 0)


@triton.jit
def exp_minus_abs(x):
    """Compute ``exp(-|x|)``, from which sigmoid and softplus follow without overflow."""
    return tl.exp(-tl.abs(x))


@triton.jit
def sigmoid_from_exp(x, e):
    """Compute the sigmoid of ``x``, given ``e = exp(-|x|)``."""
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def softplus_from_exp(x, e, DOUBLE: tl.constexpr):
    """Compute ``log(1 + exp(x))``, given ``e = exp(-|x|)``, to a relative error of rounding.

    The hardware's logarithm has no digits left near 1, where small step sizes are. Here
    ``log(1 + e) = 2 atanh(q)`` with ``q = e / (2 + e)``, at most 1/3, by its series in ``q * q``.
    """
    terms: tl.constexpr = 16 if DOUBLE else 6
    q = e / (2.0 + e)
    square = q * q
    series = tl.full(q.shape, 1.0 / (2 * terms + 1), q.dtype)
    for k in tl.static_range(terms - 1, -1, -1):
        series = series * square + 1.0 / (2 * k + 1)
    return tl.maximum(x, 0.0) + 2.0 * q * series
