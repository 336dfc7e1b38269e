"""Text in pieces without the white space around it."""


class Trimmer:
    """White space at the end is held back until something follows it; at the beginning, with `left`, it is dropped."""

    def __init__(self, *, left: bool):
        self._left = left
        self._held = ""

    def push(self, text: str) -> str:
        """What can be given out."""
        if self._left:
            text = text.lstrip()
            self._left = not text
        text = self._held + text
        shown = text.rstrip()
        self._held = text[len(shown) :]
        return shown

    def flush(self) -> str:
        """The white space still held, once it is known to belong to the text."""
        held, self._held = self._held, ""
        return held
