"""Policies: files become a bundle, and a bundle, an action and facts become a verdict."""
