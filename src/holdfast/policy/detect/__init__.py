"""Detectors: what looks like personal data, secrets and injected instructions, each checked by a rule of its own."""
