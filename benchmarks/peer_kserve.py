"""A model under KServe's Python server: MODEL FILE GRPC-PORT HTTP-PORT [--threads].

Runs in KServe's own environment, started by ``peers.py``. With ``--threads`` the call
leaves the event loop; without, it is written as KServe's documentation shows it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer

MODEL, FILE, PORT, HTTP_PORT = sys.argv[1:5]
THREADS = os.cpu_count() or 1


class Served(Model):  # type: ignore[misc]  # known in its own environment only
    """One session that several threads may call."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            FILE, options, providers=["CPUExecutionProvider"]
        )
        self.pool = ThreadPoolExecutor(THREADS)
        self.ready = True

    def answer(self, payload: Any) -> InferResponse:
        """The probabilities for the request's pixels."""
        pixels = payload.inputs[0].as_numpy()
        (found,) = self.session.run(["probabilities"], {"images": pixels})
        output = InferOutput("probabilities", list(found.shape), "FP32")
        output.set_data_from_numpy(found)
        return InferResponse(response_id=payload.id, model_name=MODEL, infer_outputs=[output])


class OnTheLoop(Served):
    """As written."""

    def predict(self, payload: Any, _headers: Any = None, _more: Any = None) -> InferResponse:
        """Answer on the event loop."""
        return self.answer(payload)


class OnThreads(Served):
    """Moved off the event loop by hand."""

    async def predict(self, payload: Any, _headers: Any = None, _more: Any = None) -> InferResponse:
        """Answer on a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, self.answer, payload)


if __name__ == "__main__":
    model = OnThreads() if "--threads" in sys.argv else OnTheLoop()
    server = ModelServer(grpc_port=int(PORT), http_port=int(HTTP_PORT), workers=1)
    server.start([model])
