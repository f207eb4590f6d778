"""The Acclimate service: adapt a served image classifier, and serve what a guard accepted."""

import os

# onnxruntime's own builds keep a device's id in the home and tell their makers of every session,
# unless this stands before it is imported (its Privacy.md). Nobody asked our users.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
