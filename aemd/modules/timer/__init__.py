"""Event module `timer`; parameters, schedules and calendars have files of their own."""

from aemd.modules.timer.timer import Timer

__all__ = ["Timer"]
