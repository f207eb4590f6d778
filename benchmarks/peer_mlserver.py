"""A model under MLServer: MODEL FILE GRPC-PORT HTTP-PORT.

Runs in MLServer's own environment, started by ``peers.py``. One process, and the call
moved off the event loop by hand: its worker processes would each hold a model.
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceResponse

THREADS = os.cpu_count() or 1


class Served(MLModel):  # type: ignore[misc]  # known in its own environment only
    """One session that several threads may call."""

    async def load(self) -> bool:
        """Open the file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self.pool = ThreadPoolExecutor(THREADS)
        return True

    async def predict(self, payload: Any) -> InferenceResponse:
        """The probabilities for the request's pixels."""
        pixels = NumpyCodec.decode_input(payload.inputs[0])
        loop = asyncio.get_running_loop()
        (found,) = await loop.run_in_executor(
            self.pool, self.session.run, ["probabilities"], {"images": pixels}
        )
        output = NumpyCodec.encode_output("probabilities", found)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])


async def main() -> None:
    """Serve until SIGTERM."""
    model, file, port, http_port = sys.argv[1:5]
    server = MLServer(
        Settings(
            host="127.0.0.1",
            grpc_port=int(port),
            http_port=int(http_port),
            metrics_port=0,
            metrics_endpoint=None,
            parallel_workers=0,
            debug=False,
            load_models_at_startup=False,
        )
    )
    settings = ModelSettings(
        name=model, implementation=Served, parameters=ModelParameters(uri=file)
    )
    await server.start([settings])


if __name__ == "__main__":
    asyncio.run(main())
