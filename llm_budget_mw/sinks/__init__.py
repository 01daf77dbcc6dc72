"""Where events go: structlog, and OpenTelemetry metrics and span attributes."""
