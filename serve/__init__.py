import shards  # noqa: F401  # before torch and ONNX Runtime: threads, telemetry
