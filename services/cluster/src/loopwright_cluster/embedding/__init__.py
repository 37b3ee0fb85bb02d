"""Text to vectors: the MiniLM model that is built at set-up, and the labelled degraded mode for when it is missing."""

import os

# onnxruntime's wheels (1.29 and later) send usage events to their maker and keep a device id in the home folder. Only this variable, set
# before onnxruntime is loaded, stops all of it (microsoft/onnxruntime#27379); its disable_telemetry_events() comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Parts a title from the rest in a text to embed: MiniLM gives what stands before it more weight. It stands here since this package has to
# run without the others: the image builds the model before it holds the service.
TITLE_ENDS = "\x1e"
