"""Which language a text is in: by script, and for Latin and Cyrillic by the small words that every text has."""

from __future__ import annotations

import re
from collections import Counter

_WORDS = {
    "en": "the of and to in is that it for was on are with as this be at by not have from or you which we they can",
    "de": "der die das und ist nicht ein eine zu den von mit sich auf für im dem es auch als wird werden sie wir ich",
    "fr": "le la les des et est une un que qui dans pour pas sur il elle nous vous avec au du sont ce cette mais ne",
    "es": "el la los las de y que en un una es por con no para se del al lo como más pero su está son muy",
    "it": "il lo la gli le di e che è un una per non con del della sono nel si come più ma anche questo alla",
    "pt": "o os as de e que em um uma é para não com do da dos das se por mais como mas foi ao são você",
    "nl": "de het een en van is niet dat op te in voor met zijn die ook aan er maar om naar bij wordt ik je",
    "sv": "och att det som en på är av för med den till inte ett har jag om var men så vi han från kan",
    "da": "og at det som en på er af for med den til ikke et har jeg om var men så vi han fra kan der",
    "pl": "i w na nie z że się do to jest o jak ale po co za od przez tak czy jego tylko dla są oraz",
    "tr": "ve bir bu da de için ile çok ne gibi daha var olarak ama en mi ben sen değil kadar olan sonra",
    "ro": "și de la în a nu că un o pe cu din este se mai care sau pentru ce au fost dar sunt lui",
    "ru": "и в не на что я с он как это по но они мы из у за вы так же от было для все бы",
    "uk": "і в не на що я з він як це по але вони ми із у за ви так же від було для всі та",
}
_SMALL: dict[str, frozenset[str]] = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")
_SCRIPTS = (
    ("ja", 0x3040, 0x30FF),
    ("ko", 0xAC00, 0xD7A3),
    ("ko", 0x1100, 0x11FF),
    ("zh", 0x4E00, 0x9FFF),
    ("zh", 0x3400, 0x4DBF),
    ("ar", 0x0600, 0x06FF),
    ("he", 0x0590, 0x05FF),
    ("hi", 0x0900, 0x097F),
    ("bn", 0x0980, 0x09FF),
    ("ta", 0x0B80, 0x0BFF),
    ("th", 0x0E00, 0x0E7F),
    ("ka", 0x10A0, 0x10FF),
    ("hy", 0x0530, 0x058F),
    ("el", 0x0370, 0x03FF),
    ("cyrl", 0x0400, 0x04FF),
)
_SAMPLE = 20_000
"""Letters that are counted: more change nothing."""


def language(text: str) -> str:
    """The code of a text's language (ISO 639-1); empty when nothing tells."""
    scripts: Counter[str] = Counter()
    letters = 0
    for char in text[:_SAMPLE]:
        if not char.isalpha():
            continue
        letters += 1
        code = ord(char)
        if code > 0x36F:
            scripts[next((name for name, low, high in _SCRIPTS if low <= code <= high), "other")] += 1
    if not letters:
        return ""
    if scripts["ja"] * 5 >= letters:
        return "ja"
    if scripts:
        name, count = scripts.most_common(1)[0]
        if count * 2 > letters:
            return _by_words(text, ("ru", "uk")) or "ru" if name == "cyrl" else "" if name == "other" else name
    return _by_words(text, tuple(name for name in _SMALL if name not in ("ru", "uk")))


def _by_words(text: str, names: tuple[str, ...]) -> str:
    words = Counter(word.lower() for word in _WORD.findall(text[:_SAMPLE]))
    scores = {name: sum(words[small] for small in _SMALL[name]) for name in names}
    best, second, *_ = sorted(scores.values(), reverse=True)
    total = sum(words.values())
    if best < 2 or best * 10 < total or best == second:
        return ""
    return max(scores, key=lambda name: scores[name])
