"""Makes text from outside, such as names of files, safe to show."""


def as_text(text: str) -> str:
    r"""Return text without anything invisible: controls, directions and bytes that are no text become escapes.

    Example:
        >>> print(as_text("a\nb\u202ec\udc80"))
        a\nb\u202ec\udc80
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
