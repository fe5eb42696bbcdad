"""Event modules: one file or folder for each event family.

A module declares its parameters, events and operations as data (`contract.py`), and is found through the
entry-point group `aemd.modules`. Adding one touches nothing else.
"""
