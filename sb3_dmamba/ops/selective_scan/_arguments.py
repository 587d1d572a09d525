"""Places in the block of 64-bit integers that the selective scan's kernels take as arguments.

Addresses, sizes, and strides in bytes; the address of what is absent is 0.
"""

from __future__ import annotations

# fmt: off
# The argument block; ``cpu`` packs it in this order. X, X_B, X_T: address, strides along B and L.
(COUNTER, BATCH, LENGTH, CHANNELS, STATES, RANK, SOFTPLUS, CHUNK,
 U, U_B, U_T, DELTA, DELTA_B, DELTA_T, B_IN, B_B, B_T, C_IN, C_B, C_T, Z, Z_B, Z_T,
 A_IN, D_IN, BIAS, INITIAL, DELTA_WEIGHT, CHECKPOINTS, Y, FINAL,
 GRAD_Y, GRAD_Y_B, GRAD_Y_T, GRAD_FINAL, D_U, D_DELTA, D_B, D_C, D_Z, D_INITIAL,
 PARTIALS, GROUP_SIZE) = (8 * place for place in range(43))
# fmt: on
