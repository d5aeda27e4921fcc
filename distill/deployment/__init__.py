"""The student's files (ONNX, INT8, fp16) and what runs them; `runtime`, `predict` and `media` need no torch."""
