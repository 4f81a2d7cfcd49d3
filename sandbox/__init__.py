"""Running model-written code under limits."""
