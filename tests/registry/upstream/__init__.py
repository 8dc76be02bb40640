"""Compares kone's rules with upstream's own code, and records what that answers. Development only: needs Go."""
