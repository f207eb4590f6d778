"""``InferenceService``: decode, run, name the version that answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import numpy as np

from acclimate.v1 import inference_pb2 as pb
from acclimate.v1 import inference_pb2_grpc as pb_grpc
from acclimate_service.domain.errors import ServiceError
from acclimate_service.imaging import decode_prepared
from acclimate_service.rpc import convert_predictions as convert
from acclimate_service.rpc.bounds import Gate, Lane
from acclimate_service.rpc.served import Served

Context = grpc.aio.ServicerContext[Any, Any]
