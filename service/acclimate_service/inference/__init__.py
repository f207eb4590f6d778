"""Versions as onnxruntime sessions: loaded, swapped, and run beside the event loop."""
