"""The verbs of aemctl, by what they are about."""
