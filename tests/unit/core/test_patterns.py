"""What patterns of policy match, and which certainly match all that others do."""

from __future__ import annotations

import pytest

from aemd.core.patterns import PathPatterns, Patterns


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("timer", "timer", True),
        ("timer", "timers", False),
        ("timer", "Timer", False),
        ("t*r", "timer", True),
        ("*", "", True),
        ("t?mer", "timer", True),
        ("[st]imer", "timer", True),
        ("[!t]imer", "timer", False),
        ("a.b", "axb", False),
        ("tcp:*:80", "tcp:127.0.0.1:80", True),
        ("tcp:*:80", "tcp::80", True),
        ("tcp:*:80", "tcp:127.0.0.1:8080", False),
        ("/etc/*", "/etc/ssh/key", True),
        ("x", "x\n", False),
        ("*", "two\nlines", True),
        ("[", "[", True),
    ],
)
def test_a_pattern_matches_the_whole_text(pattern, text, matches):
    assert Patterns((pattern,)).matches(text) is matches


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/system.slice", "/system.slice", True),
        ("/system.slice/", "/system.slice/cron.service", True),
        ("/system.slice", "/system.slice/a/b/c", True),
        ("/system.slice", "/system.slice2", False),
        ("/system.slice", "/", False),
        ("/", "/anything", True),
        ("/*/cron.service", "/system.slice/cron.service", True),
        ("/*/cron.service", "/user.slice/user-1000.slice/cron.service", False),
        ("/user.slice/user-*.slice", "/user.slice/user-1000.slice/user@1000.service/x", True),
        ("cron.service", "cron.service", True),
        ("*.service", "cron.service", True),
        ("*cron.service", "user@1000.service/cron.service", False),
        ("user@1000.service", "user@1000.service/cron.service", True),
        ("user@1000.service/*.service", "user@1000.service/cron.service", True),
    ],
)
def test_a_path_pattern_covers_what_is_below_and_no_wildcard_goes_over_a_slash(pattern, path, matches):
    assert PathPatterns((pattern,)).matches(path) is matches


def test_what_certainly_covers():
    assert Patterns(("*",)).cover(Patterns(("a*", "b")))
    assert Patterns(("a*",)).cover(Patterns(("ab",)))
    assert Patterns(("a*", "b")).cover(Patterns(("a*",)))
    assert not Patterns(("a*",)).cover(Patterns(("a?",))), "nobody has looked into the pattern"
    assert not Patterns(("ab",)).cover(Patterns(("a*",)))
    assert PathPatterns(("/a",)).cover(PathPatterns(("/a/b",)))
    assert not PathPatterns(("/a/b",)).cover(PathPatterns(("/a",)))
    assert not PathPatterns(("*",)).cover(PathPatterns(("a*",)))


def test_patterns_are_not_slow_on_texts_made_for_that():
    """Counted by not ending at all: the expression that backtracks would take longer than the universe."""
    assert not Patterns(("*a" * 30 + "b",)).matches("a" * 4_000)
