"""Text to vectors: the MiniLM model that is built at set-up, and the labelled degraded mode for when it is missing."""

import os

# onnxruntime's wheels (1.29 and later) send usage events to their maker and keep a device id in the home folder. Only this variable, set
# before onnxruntime is loaded, stops all of it (microsoft/onnxruntime#27379); its disable_telemetry_events() comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
