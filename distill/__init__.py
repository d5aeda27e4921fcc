"""Knowledge distillation for semantic segmentation: a teacher, a student, and the loss between them."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on, onnxruntime reports what it runs to its maker
