"""Policies: what a checkpoint must be to pass the gate, as a file says it."""

from weightguard.policy.document import Policy, PolicyError
from weightguard.policy.reading import find_policy, read_policy, write_template

__all__ = ["Policy", "PolicyError", "find_policy", "read_policy", "write_template"]
