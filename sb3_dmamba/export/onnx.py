"""Write a policy's step as ONNX, and open it.

Uses torch's TorchScript-based exporter (``dynamo=False``). Its successor (``dynamo=True``) needs
torch 2.5 and onnxscript, where this package supports torch 2.4 and asks for onnx alone; it writes
opset 18 at the least, where these files are opset 17; and with torch 2.13 it takes more than ten
times as long: 10 seconds for a model of one layer, a minute or two for six.
"""

from __future__ import annotations

import inspect
import io
import json
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sb3_dmamba.errors import MissingDependencyError
from sb3_dmamba.export.graph import EXAMPLE_ENVS, PolicyGraph, Step, Tensors
from sb3_dmamba.ops.traceable import recurrence_as, run_recurrence

METADATA_KEY = "sb3_dmamba"
STATE = "state."  #: prefix of inputs that are part of the state
NEXT = "next_"  #: second prefix of the outputs to pass there at the next step

_OPSET = 17  # the first with LayerNormalization
_DOMAIN, _OPERATOR = "sb3_dmamba", "Recurrence"


def to_onnx(graph: PolicyGraph, metadata: dict[str, Any]) -> bytes:
    """Write the step as a graph of standard operators, for any number of environments."""
    observation, return_to_go, state = graph.make_example(EXAMPLE_ENVS)
    model = trace_to_onnx(
        _Flat(graph, list(state)).eval(),
        (observation, return_to_go, *state.values()),
        ["observation", "return_to_go", *(STATE + name for name in state)],
        [*graph.output_names, *(NEXT + STATE + name for name in state)],
        rows="n_envs",
    )
    _describe(model, metadata)
    content: bytes = model.SerializeToString()
    return content


class _Flat(nn.Module):
    """The step with the state's tensors as separate inputs and outputs, as ONNX has them."""

    def __init__(self, graph: PolicyGraph, names: list[str]) -> None:
        super().__init__()
        self.graph = graph
        self.names = names

    def forward(self, observation: Tensor, return_to_go: Tensor, *rows: Tensor) -> Any:
        """Act once; see :meth:`PolicyGraph.forward`."""
        state = dict(zip(self.names, rows, strict=True))
        outputs, after = self.graph(observation, return_to_go, state)
        return *outputs.values(), *after.values()


def trace_to_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    *,
    rows: str | None = None,
) -> Any:
    """Trace a module whose networks are traceable into a model of standard operators."""
    try:
        import onnx
        import onnx.inliner
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("onnx"):
            raise  # onnx is there, and something that it needs is not
        raise MissingDependencyError("onnx", "export to ONNX", "onnx") from error
    options: dict[str, Any] = {"opset_version": _OPSET}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        # An older torch lacks the argument, and in a newer one its default is True.
        options["dynamo"] = False
    if rows is not None:
        options["dynamic_axes"] = {name: {0: rows} for name in (*input_names, *output_names)}
    buffer: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), recurrence_as(_Recurrence.apply):
        warnings.simplefilter("ignore")  # the exporter's notes about itself
        torch.onnx.export(
            module, example, buffer, input_names=input_names, output_names=output_names, **options
        )
    model = _define_recurrence(onnx.load_from_string(buffer.getvalue()))
    onnx.checker.check_model(model, full_check=True)
    return model


def open_onnx(content: bytes, graph: PolicyGraph) -> Step:
    """Open what :func:`to_onnx` returned, with onnxruntime; ``graph`` is what was exported."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def step(observation: Tensor, return_to_go: Tensor, state: Tensors) -> tuple[Tensors, Tensors]:
        feed = {"observation": observation, "return_to_go": return_to_go}
        feed |= {STATE + name: rows for name, rows in state.items()}
        arrays = {name: rows.numpy() for name, rows in feed.items()}
        found = dict(zip(names, map(torch.as_tensor, session.run(None, arrays)), strict=True))
        outputs = {name: found[name] for name in graph.output_names}
        return outputs, {name: found[NEXT + STATE + name] for name in state}

    return step


class _Recurrence(torch.autograd.Function):
    """:func:`run_recurrence` as one operator, which :func:`_define_recurrence` replaces."""

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the recurrence."""
        return run_recurrence(*arguments)

    @staticmethod
    def symbolic(g: Any, *arguments: Any) -> Any:
        """Write the operator."""
        _, x, _, _, _, state = arguments
        y, final = g.op(f"{_DOMAIN}::{_OPERATOR}", *arguments, outputs=2)
        y.setType(x.type())
        final.setType(state.type())
        return y, final


def _define_recurrence(model: Any) -> Any:
    """Replace each :class:`_Recurrence` by a ``Scan`` over tokens.

    Decay and inflow are computed token by token, so that memory holds one state only.
    """
    import onnx
    from onnx import helper

    def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
        return helper.make_node(operator, inputs.split(), [output], **attributes)

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)

    body = helper.make_graph(
        [
            node("Mul", "step_t A", "exponent"),
            node("Exp", "exponent", "decay"),  # (B, D, N)
            node("Mul", "input_t B_t", "inflow"),
            node("Mul", "decay before", "decayed"),
            node("Add", "decayed inflow", "after"),
            node("MatMul", "after C_t", "y_t"),  # (B, D, 1)
        ],
        "token",
        [value(name) for name in ("before", "step_t", "input_t", "B_t", "C_t")],
        [value("after"), value("y_t")],
    )
    tokens_first = []  # (B, L, D) to (L, B, D, 1), and B to (L, B, 1, N)
    for name, axis in (("step", "last"), ("input", "last"), ("B", "middle"), ("C", "last")):
        tokens_first += [
            node("Transpose", name, f"{name}_first", perm=[1, 0, 2]),
            node("Unsqueeze", f"{name}_first {axis}", f"{name}_rounds"),
        ]
    recurrence = helper.make_function(
        _DOMAIN,
        _OPERATOR,
        ["step", "x", "A", "B", "C", "state"],
        ["y", "final"],
        [
            node("Constant", "", "last", value_ints=[-1]),
            node("Constant", "", "middle", value_ints=[2]),
            node("Mul", "step x", "input"),
            *tokens_first,
            helper.make_node(
                "Scan",
                ["state", "step_rounds", "input_rounds", "B_rounds", "C_rounds"],
                ["final", "y_rounds"],
                body=body,
                num_scan_inputs=4,
            ),
            node("Squeeze", "y_rounds last", "y_first"),
            node("Transpose", "y_first", "y", perm=[1, 0, 2]),
        ],
        [helper.make_opsetid("", _OPSET)],
    )
    model.functions.append(recurrence)
    inlined = onnx.inliner.inline_local_functions(model)
    for index, opset in reversed(list(enumerate(inlined.opset_import))):
        if opset.domain == _DOMAIN:
            del inlined.opset_import[index]
    return inlined


def _describe(model: Any, metadata: dict[str, Any]) -> None:
    """Set the model's metadata and the types of its state outputs."""
    from onnx import helper

    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    model.producer_name, model.producer_version = "sb3_dmamba", metadata["versions"]["sb3_dmamba"]
    model.doc_string = (
        "One step of a policy. Pass zeros as the state of an episode that begins, and each "
        f"{NEXT}{STATE}NAME as {STATE}NAME at the next step."
    )
    shapes = {value.name: value.type for value in model.graph.input}
    for value in model.graph.output:
        name = value.name.removeprefix(NEXT)
        if name in shapes:
            value.type.CopyFrom(shapes[name])
