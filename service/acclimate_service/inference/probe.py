"""Whether the provider that was asked for is really there, before anything needs it.

onnxruntime lists the providers it was built with, and falls back to the CPU without a
word when their libraries are missing. Only a session tells; so a server makes one, of
the smallest model that keeps the contract, and is not ready without it.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution

# images -> mean of each channel -> softmax, for images of one pixel; written with the
# onnx package, which the serving process does not have.
_MODEL: Final = base64.b64decode(
    "CAcSADqwAgocCgZpbWFnZXMSAWYiBENhc3QqCQoCdG8YAaABAgo7CgFmEgplbWJlZGRpbmdzIgpSZWR1Y2VNZWFu"
    "Kg0KBGF4ZXNAAUACoAEHKg8KCGtlZXBkaW1zGACgAQIKHgoKZW1iZWRkaW5ncxIGbG9naXRzIghJZGVudGl0eQot"
    "CgZsb2dpdHMSDXByb2JhYmlsaXRpZXMiB1NvZnRtYXgqCwoEYXhpcxgBoAECEgVwcm9iZVohCgZpbWFnZXMSFwoV"
    "CAISEQoDEgFOCgIIAQoCCAEKAggDYiAKDXByb2JhYmlsaXRpZXMSDwoNCAESCQoDEgFOCgIIA2IZCgZsb2dpdHMS"
    "DwoNCAESCQoDEgFOCgIIA2IdCgplbWJlZGRpbmdzEg8KDQgBEgkKAxIBTgoCCANCBAoAEA0="
)


def probe(execution: Execution) -> None:
    """Make and run a session as *execution* says.

    Raises:
        ProviderUnavailable: onnxruntime has fallen back from the provider asked for.
        VersionUnloadable: the provider is there and cannot run.
    """
    digest = hashlib.sha256(_MODEL).hexdigest()
    Classifier.open(_MODEL, digest=digest, labels=3, size=1, execution=execution).warm()
