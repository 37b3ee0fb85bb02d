"""The all-MiniLM-L6-v2 encoder written out as an ONNX graph, without torch.

Source of the architecture: BERT (Devlin et al. 2018) as configured by `config.json` beside the weights; the pooling (mean over tokens,
then L2 normalisation) is the one all-MiniLM-L6-v2 was trained with (sentence-transformers, `1_Pooling/config.json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18  # LayerNormalization needs 17, ReduceSum and ReduceL2 with axes as an input need 18
IR_VERSION = 9  # the oldest that carries opset 18, so older onnxruntime releases load the file too
MASKED_SCORE = -1e4  # BERT's own additive mask; -inf would give NaN for a row that is all padding

Array = npt.NDArray[Any]


class _GraphBuilder:
    """Collects nodes and constants, naming each output, so that the encoder below reads as its formula."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, value: Array) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def apply(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def ints(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)).replace("-", "m"), np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(f"number_{value!r}", np.array(value, np.float32))


def build_encoder(weights: Mapping[str, Array], config: Mapping[str, Any]) -> onnx.ModelProto:
    """Return a checked fp32 model: `input_ids`, `attention_mask` (int64 [B, T]) -> `embedding` (float32 [B, hidden], unit length).

    Raises KeyError when a weight that the architecture needs is missing.
    """
    graph = _GraphBuilder()
    hidden, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    head_size = hidden // heads

    def weight(name: str) -> Array:
        return weights[name].astype(np.float32)

    def linear(x: str, name: str) -> str:
        kernel = graph.constant(f"{name}.kernel", weight(f"{name}.weight").T)
        return graph.apply("Add", graph.apply("MatMul", x, kernel), graph.constant(f"{name}.bias", weight(f"{name}.bias")))

    def layer_norm(x: str, name: str) -> str:
        scale = graph.constant(f"{name}.scale", weight(f"{name}.weight"))
        shift = graph.constant(f"{name}.shift", weight(f"{name}.bias"))
        return graph.apply("LayerNormalization", x, scale, shift, axis=-1, epsilon=config["layer_norm_eps"])

    def split_heads(x: str, permutation: list[int]) -> str:
        return graph.apply("Transpose", graph.apply("Reshape", x, graph.ints(0, 0, heads, head_size)), perm=permutation)

    def gelu(x: str) -> str:
        error_function = graph.apply("Erf", graph.apply("Div", x, graph.number(float(np.sqrt(2)))))
        return graph.apply("Mul", graph.apply("Mul", x, graph.apply("Add", error_function, graph.number(1.0))), graph.number(0.5))

    mask = graph.apply("Cast", "attention_mask", to=TensorProto.FLOAT)
    masked = graph.apply("Sub", graph.number(1.0), graph.apply("Unsqueeze", mask, graph.ints(1, 2)))
    attention_bias = graph.apply("Mul", masked, graph.number(MASKED_SCORE))

    x = layer_norm(_embed_tokens(graph, weight), "embeddings.LayerNorm")
    for index in range(layers):
        layer = f"encoder.layer.{index}"
        query = split_heads(linear(x, f"{layer}.attention.self.query"), [0, 2, 1, 3])
        key = split_heads(linear(x, f"{layer}.attention.self.key"), [0, 2, 3, 1])
        value = split_heads(linear(x, f"{layer}.attention.self.value"), [0, 2, 1, 3])
        scores = graph.apply("Mul", graph.apply("MatMul", query, key), graph.number(float(1 / np.sqrt(head_size))))
        attention = graph.apply("Softmax", graph.apply("Add", scores, attention_bias), axis=-1)
        mixed = graph.apply("Transpose", graph.apply("MatMul", attention, value), perm=[0, 2, 1, 3])
        mixed = graph.apply("Reshape", mixed, graph.ints(0, 0, hidden))
        x = layer_norm(graph.apply("Add", linear(mixed, f"{layer}.attention.output.dense"), x), f"{layer}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{layer}.intermediate.dense"))
        x = layer_norm(graph.apply("Add", linear(inner, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm")

    _mean_pool(graph, x, mask)
    return _checked_model(graph, hidden)


def _embed_tokens(graph: _GraphBuilder, weight: Any) -> str:
    words = graph.apply("Gather", graph.constant("word_embeddings", weight("embeddings.word_embeddings.weight")), "input_ids")
    length = graph.apply("Gather", graph.apply("Shape", "input_ids"), graph.ints(1))
    table = graph.constant("position_embeddings", weight("embeddings.position_embeddings.weight"))
    # A Slice of the table: the usual Gather(table, Range(length)) is miscompiled by onnxruntime 1.31.
    positions = graph.apply("Slice", table, graph.ints(0), length, graph.ints(0))
    # One sentence per input, so every token has type 0 and the type embedding is a constant.
    token_type = graph.constant("token_type", weight("embeddings.token_type_embeddings.weight")[0])
    return graph.apply("Add", graph.apply("Add", words, token_type), positions)


def _mean_pool(graph: _GraphBuilder, x: str, mask: str) -> None:
    total = graph.apply("ReduceSum", graph.apply("Mul", x, graph.apply("Unsqueeze", mask, graph.ints(2))), graph.ints(1), keepdims=0)
    tokens = graph.apply("ReduceSum", mask, graph.ints(1), keepdims=1)
    mean = graph.apply("Div", total, graph.apply("Max", tokens, graph.number(1e-9)))
    graph.apply("Div", mean, graph.apply("ReduceL2", mean, graph.ints(1), keepdims=1), output="embedding")


def _checked_model(graph: _GraphBuilder, hidden: int) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", hidden])]
    body = helper.make_graph(graph.nodes, "all-MiniLM-L6-v2", inputs, outputs, list(graph.constants.values()))
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model
