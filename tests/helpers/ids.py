"""Names of parametrised tests that are the same in every process."""

import re


def stable_id(value):
    """``str`` without the addresses of functions and other objects."""
    return re.sub(r"<(?:function )?([\w.<>]+)(?: object)? at 0x[0-9a-f]+>", r"\1", str(value))
