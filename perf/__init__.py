"""Cost model, benchmarks, quality and reports."""
