"""Many words at once: the automaton of Aho and Corasick (Communications of the ACM 18, 1975)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence


class Dictionary:
    """Words that are looked for together; the time depends on the text and the findings, not on how many words."""

    __slots__ = ("_case", "_fail", "_goto", "_sizes", "_whole")

    def __init__(self, words: Sequence[str], *, whole: bool = True, case_sensitive: bool = False) -> None:
        """Build the automaton. White space in a word is one space."""
        self._whole, self._case = whole, case_sensitive
        self._goto: list[dict[str, int]] = [{}]
        self._sizes: list[tuple[int, ...]] = [()]
        for word in words:
            self._add(self._lower(" ".join(word.split())))
        self._fail = [0] * len(self._goto)
        queue = deque(self._goto[0].values())
        while queue:
            state = queue.popleft()
            for char, following in self._goto[state].items():
                queue.append(following)
                fallback = self._fail[state]
                while fallback and char not in self._goto[fallback]:
                    fallback = self._fail[fallback]
                self._fail[following] = self._goto[fallback].get(char, 0) if state else 0
                self._sizes[following] += self._sizes[self._fail[following]]

    def _lower(self, text: str) -> str:
        # Character by character, so that offsets stay: a few capitals have a longer small form.
        if self._case:
            return text
        return text.lower() if text.isascii() else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)

    def _add(self, word: str) -> None:
        state = 0
        for char in word:
            following = self._goto[state].get(char)
            if following is None:
                following = self._goto[state][char] = len(self._goto)
                self._goto.append({})
                self._sizes.append(())
            state = following
        if word and len(word) not in self._sizes[state]:
            self._sizes[state] += (len(word),)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where a word stands: the longest of those that end at one place; offsets in code points, end exclusive."""
        plain, places = self._lower(text), None
        if "  " in plain or any(char in plain for char in "\n\t\r\u00a0"):
            plain, places = _squeezed(plain)
        goto, fail, sizes = self._goto, self._fail, self._sizes
        state = 0
        for index, char in enumerate(plain):
            while state and char not in goto[state]:
                state = fail[state]
            state = goto[state].get(char, 0)
            for size in sorted(sizes[state], reverse=True) if sizes[state] else ():
                start, end = index + 1 - size, index + 1
                if self._whole and not _apart(plain, start, end):
                    continue
                yield (start, end) if places is None else (places[start], places[end - 1] + 1)
                break


def _squeezed(text: str) -> tuple[str, list[int]]:
    chars, places, space = [], [], False
    for index, char in enumerate(text):
        if char.isspace():
            if space:
                continue
            char, space = " ", True
        else:
            space = False
        chars.append(char)
        places.append(index)
    return "".join(chars), places


def _apart(text: str, start: int, end: int) -> bool:
    return not (text[start - 1 : start].isalnum() and text[start].isalnum()) and not (
        text[end - 1].isalnum() and text[end : end + 1].isalnum()
    )
