"""What `aemctl doctor` looks at: the kernel, the machine, and the daemons on it.

Rules: whatever can be tried is tried, not deduced from a version; nothing is changed by that, and nothing is
left open; a check that fails in a way that nobody thought of is a finding, too, and the others go on.
"""
