"""Adapters between weightguard's core and the frameworks that serve models."""
