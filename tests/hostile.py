"""Text that attacks whoever looks at it, and what a place that shows it must and must not hold."""

import re
import unicodedata

OSC_TITLE, C1_CSI = "\x1b]0;owned\x07", "\x9b31m"
SURROGATE = "\udcff"
HOSTILE = f"{OSC_TITLE}\x1b[31m{C1_CSI}\r\b\x7f\u202e\u200b\u2066\ufeff[red]a[link=x]b:bug:"
ESCAPED = r"\x1b]0;owned\x07\x1b[31m\x9b31m\r\x08\x7f\u202e\u200b\u2066\ufeff[red]a[link=x]b:bug:"

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what is a command, has no width, cannot be encoded, or ends a line."""


def assert_no_command(printed: str) -> None:
    """Nothing that a terminal would obey is in it."""
    assert not {letter for letter in printed if letter != "\n" and unicodedata.category(letter) in UNSEEN}


def assert_harmless(printed: str) -> None:
    """Nothing that a terminal would obey is in it, and the hostile text is there, each character of it to be seen."""
    assert_no_command(printed)
    assert ESCAPED in re.sub(r"\s+", "", printed)
