from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from onnx import TensorProto, helper

PROGRAM = """
import sys
from acclimate_service.inference import sessions
content = sys.stdin.buffer.read()
sessions.ort.InferenceSession(content, providers=["CPUExecutionProvider"])
"""


def test_onnxruntime_tells_nobody_of_our_sessions(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    told = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=model.SerializeToString(),
        env=told | {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""},
        check=True,
        timeout=60,
    )
    assert list(tmp_path.rglob("*")) == []  # an id of this device, and what waits to be sent
