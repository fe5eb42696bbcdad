"""Jobs, bindings, delivery, credit, rights: everything that decides, and nothing that touches the world.

The core takes commands, fires and times, and returns effects and frames. It owns no socket, no clock
and no thread, so every promise of the project can be checked here without a kernel.
"""
