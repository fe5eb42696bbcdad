"""The Python SDK of aemd."""
