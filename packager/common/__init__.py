"""Utilities for all rooms. Nothing here depends on manifests, models or bundles."""
