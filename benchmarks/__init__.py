"""Benchmarks: aemd beside its peers, in the same run, as ratios.

Machines are noisy; digits of different runs are not comparable.
"""
