"""Which calls wait for one another: gRPC takes the calls of one queue one after the other.

For every registered method grpc.aio keeps a queue and a task that waits for the next call, and at
each call it goes through all of these in Python (grpcio 1.85). What is only looked up shares one.
"""

from __future__ import annotations

from typing import Final

# Each has a queue of its own, so that thousands of calls of anything else, which are taken
# one after the other to be refused, are not before it: they held health up for 4 seconds.
APART: Final = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/acclimate.v1.InferenceService/Predict",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
