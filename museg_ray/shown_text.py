"""Text that is not ours, as it may be shown: a video's path, a question, a response, the message of a library.

Invariant: no such text reaches a terminal, a log or a page but through here. A terminal obeys what it is sent: a
response could retitle the window, move the cursor over the line above, or turn the reading order of a path round.
"""

import re

_UNSEEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: commands to a terminal
    "\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # no width, or another direction
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001-\U000e007f"  # likewise
    "\u2028\u2029"  # ends of lines to some readers
    "\ud800-\udfff"  # half a surrogate pair cannot be encoded: printing it raises
    "]"
)


def shown(text: str) -> str:
    """Control characters and those that are not seen as escapes such as `\\x1b`; ends of lines and tabs stay."""
    return _UNSEEN.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found), text)


def one_line(text: str) -> str:
    """`shown` where the place is one line: ends of lines and tabs are escapes too."""
    return _UNSEEN.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
