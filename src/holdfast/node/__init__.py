"""The node: one host process that drives runs."""
