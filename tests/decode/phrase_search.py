"""How far banned phrases take an output back: the rule itself, for tests."""

from collections.abc import Sequence


class Search:
    """Reads the whole text again after each token: slow, and without a state."""

    def __init__(self, tokens: Sequence[bytes], phrases: Sequence[str], special_ids: Sequence[int] = ()):
        self.tokens = [b"" if token_id in special_ids else token for token_id, token in enumerate(tokens)]
        self.phrases = [phrase.casefold() for phrase in phrases]

    def find(self, token_ids: Sequence[int], *, at_end: bool) -> int | None:
        """The token in which the phrase begins that is complete first; of several, the one that begins last."""
        text, owners, _ = self.read(token_ids, at_end=at_end)
        found = [
            (start + len(phrase), -start)
            for phrase in self.phrases
            for start in range(len(text))
            if text.startswith(phrase, start)
        ]
        return owners[-min(found)[1]] if found else None

    def num_settled(self, token_ids: Sequence[int]) -> int:
        """Tokens in which nothing begins that text after them may make a phrase."""
        text, owners, unfinished = self.read(token_ids)
        for start, owner in enumerate(owners):
            rest = text[start:]
            if any(len(phrase) > len(rest) and phrase.startswith(rest) for phrase in self.phrases):
                return owner
        return len(token_ids) if unfinished is None else unfinished

    def read(self, token_ids: Sequence[int], *, at_end: bool = False) -> tuple[str, list[int], int | None]:
        """The folded text that is complete, the token in which each of its characters begins, and the one in which a
        character begins that is not."""
        data = [(byte, index) for index, token_id in enumerate(token_ids) for byte in self.tokens[token_id]]
        text, owners, start = "", [], 0
        while start < len(data):
            size, character = next_character(bytes(byte for byte, _ in data[start : start + 4]))
            if character is None and not at_end:
                return text, owners, data[start][1]
            folded = (character or "\ufffd").casefold()
            text += folded
            owners += [data[start][1]] * len(folded)
            start += size
        return text, owners, None


def next_character(data: bytes) -> tuple[int, str | None]:
    """(bytes, the character that they are); None where it is not finished."""
    for size in range(1, len(data) + 1):
        try:
            return size, data[:size].decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return max(1, error.end - error.start), "\ufffd"
    return len(data), None
