"""The embedding keeps nothing in the home folder and sends nothing: onnxruntime's own telemetry is off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# What onnxruntime takes as a wish for quiet; left out, so that the package's own switch is what is tested.
QUIET = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")
SESSION = """
import sys, time
import onnx
{first}
import onnxruntime
value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [other])
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
time.sleep(1)
"""


def written_at_home(home: Path, first: str) -> list[str]:
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in (*QUIET, "XDG_CACHE_HOME")} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", SESSION.format(first=first)], env=environment, check=True, timeout=60)
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_the_embedding_leaves_no_device_id_and_no_event_store(tmp_path: Path) -> None:
    assert written_at_home(tmp_path / "with", "import loopwright_cluster.embedding.minilm") == []
