"""Instructions that text addresses to a model: heuristics over phrases, to warn and to measure, never to rely on.

An attacker can always say it another way. What holds is the flow of labels; this only finds what is said openly. One
strong phrase makes a finding, and so do three weak ones of different kinds close to each other.
"""

from __future__ import annotations

import re

from holdfast.policy.detect.engine import Automaton
from holdfast.policy.detect.found import Found


def _words(*alternatives: str) -> str:
    return "(?:" + "|".join(alternatives) + ")"


_OLD = _words(
    *("previous", "prior", "preceding", "earlier", "above", "former", "foregoing", "existing", "original", "initial"),
    *(
        "past",
        "other",
        "old",
        "your",
        "the",
        "these",
        "those",
        "any",
        "all",
        "every",
        "given",
        "system",
        "current",
        "my",
    ),
    *("of", "about", "everything in", "safety", "developer", "security"),
)
_RULES = _words(
    *("instructions?", "orders?", "prompts?", "directions?", "directives?", "commands?", "rules", "guidelines?"),
    *("guidance", "constraints", "programming", "training", "restrictions", "measures", "protocols", "messages?"),
    *("context", "conversation", "tasks?"),
)
_DROP = _words(
    *("ignore", "ignoring", "disregard(?:ing)?", "forget(?:ting)?", "overrid(?:e|ing)", "overrul(?:e|ing)"),
    *("bypass(?:ing)?", "discard", "neglect", "abandon", "(?:do not|don't|stop) (?:follow|obey)(?:ing)?"),
)
_ANSWER = r"(?:your|the) (?:answer|response|reply|output|message)s?"
_FORM = _words(
    *(r"base ?-?\d{2}", "rot ?-?13", "morse", "hex(?:adecimal)?", "binary", "cipher", "leet", "pig latin", "emojis?"),
    *("backwards?", "reversed?", "encoded", "encoding", "spanish", "french", "german", "chinese", "russian", "italian"),
    *("japanese", "arabic", "korean", "portuguese", "another language"),
)
_SHAPE = _words(
    *("provid", "display", "encod", "giv", "writ", "translat", "show", "express", "represent", "convert", "present"),
    *("output", "format", "deliver", "return", "spell", "render"),
)
_TOLD = _words(
    *("repeat", "reveal", "show", "print(?: out)?", "output", "display", "tell me", "give me", "share", "leak"),
    *("disclose", "write out", "dump", "expose", "return", "what (?:is|are|was|were)"),
)

_STRONG: tuple[tuple[str, float], ...] = (
    # to drop earlier orders
    (rf"\b{_DROP}\s+(?:{_OLD}\s+){{1,5}}{_RULES}\b", 0.9),
    (
        r"\b(?:ignore|disregard|forget)\s+(?:everything|all|anything)\s+(?:(?:that\s+)?(?:i|you|was|were|has|have|came|"
        r"said|told|written|is)\b|above|before|prior|previous(?:ly)?|so far)",
        0.9,
    ),
    (r"\bignore\s+(?:all\s+)?(?:the\s+)?(?:above|previous|preceding)\b", 0.8),
    # to be someone without rules
    (
        r"\b(?:you are|you're|act as|become|pretend to be|imagine (?:you are|you're))\s+(?:now\s+)?"
        r"(?:(?:an?|the|special agent|in)\s+)?(?:dan\b|d\.a\.n|(?:\w+\s+){0,2}(?:rogue|jailbroken|unrestricted|"
        r"unaligned)\b)",
        0.85,
    ),
    (
        r"\b(?:do anything now|developer mode (?:enabled|on|output)|jailbreak(?:ed)? mode|"
        r"(?:with|in|enter|enable|activate) \w{2,20} mode (?:enabled|activated))\b",
        0.8,
    ),
    (
        r"\bfrom now on,?\s+(?:you(?:'re| are| will| must| reply| respond| answer| act| speak| only)|act|respond|reply|"
        r"answer|speak)\b",
        0.7,
    ),
    (
        r"\b(?:no|without(?: any)?|free (?:of|from)(?: all)?|not (?:bound|limited|restricted) by(?: any)?)\s+"
        r"(?:(?:ethical|moral|legal|safety|content)\s*(?:and|or|,)?\s*){1,3}(?:standards|guidelines|restrictions|rules|"
        r"constraints|limits|limitations|filters?|policies|boundaries)",
        0.75,
    ),
    (r"\bnever refuses?\b[^.]{0,60}\b(?:order|request|prompt|human|command|user)", 0.6),
    # to tell what it was told in confidence
    (
        rf"\b{_TOLD}\s+(?:me\s+)?(?:back\s+)?(?:(?:all|of|the|your|entire|full|whole|exact|complete|hidden|secret|"
        r"initial|original|verbatim|previous|prior)\s+){0,4}(?:system (?:prompt|message|instructions)|"
        r"your (?:\w+ ){0,2}(?:prompt|instructions)|(?:all|hidden|initial|original) instructions)\b",
        0.75,
    ),
    (
        r"\b(?:the (?:instructions|prompt) so far|(?:everything|all|text) (?:above|before) this "
        r"(?:line|point|message))\b",
        0.6,
    ),
    (
        r"\b(?:secret (?:word|key|password|code|phrase))\b[^\n]{0,240}\b(?:tell|reveal|letter by letter|spell|decode|"
        r"obfuscat|acrostic|characters? at (?:a|the) time)",
        0.75,
    ),
    (
        r"\bpasswords?\b[^\n]{0,300}\b(?:letter by letter|instructed to not reveal|(?:told|instructed) not to reveal|"
        r"obfuscated way|characters? at (?:a|the) time)",
        0.75,
    ),
    # words of the protocol itself
    (
        r"<\|im_(?:start|end)\|>|<\|(?:system|endoftext)\|>|\[/?inst\]|<</?sys>>|"
        r"#{2,3} ?(?:system|new instructions?)\b",
        0.75,
    ),
    (
        r"\bbegin (?:system|admin)\b|(?:^|\n)\s*(?:system|admin(?:istrator)?) ?"
        r"(?:prompt|message|override|instruction)\s*:",
        0.75,
    ),
    # to act behind someone's back
    (
        r"\b(?:do not|don't|without|never)\s+(?:tell(?:ing)?|mention(?:ing)?|inform(?:ing)?|alert(?:ing)?|"
        r"notify(?:ing)?|ask(?:ing)?|show(?:ing)?)\s+(?:this\s+)?(?:to\s+)?(?:the\s+|your\s+)?(?:user|human|owner|"
        r"operator|developer|customer|anyone)\b",
        0.8,
    ),
    (
        r"\b(?:new|updated|revised|real|actual)\s+(?:instructions?|task|objective|directive|system prompt)\s*"
        r"(?::|for (?:you|the (?:ai|assistant|agent|model)))",
        0.65,
    ),
    (
        r"\b(?:ai|assistant|agent|language model|llm|chatbot|copilot)s?\b[^.\n]{0,40}\b(?:must|should|shall|have to|"
        r"need to)\s+(?:now\s+|immediately\s+|also\s+)?(?:send|forward|email|upload|post|transfer|delete|execute|run|"
        r"visit|fetch|ignore|disregard)\b",
        0.7,
    ),
    # to bend the answer to a form or an end that its reader did not ask for
    (rf"\b{_SHAPE}\w{{0,4}}\b[^.?\n]{{0,40}}\b{_ANSWER}\b[^.?\n]{{0,30}}\b{_FORM}\b", 0.7),
    (rf"\b(?:us|apply|employ)(?:e|ing)?\s+{_FORM}\b[^.?\n]{{0,40}}\b{_ANSWER}\b", 0.7),
    (rf"\b(?:invert|reverse|flip|scramble)\b[^.?\n]{{0,40}}\b{_ANSWER}\b", 0.7),
    (
        rf"\b(?:in|throughout|within|at the end of|enhance|improve|start|begin|end|finish)\s+{_ANSWER}\b[^.?\n]{{0,60}}"
        r"\b(?:mention|suggest|includ|recommend|promot|advertis|insert|plug)",
        0.65,
    ),
    (
        r"\b(?:includ|inclus|incorporat|insert|add|employ|embed|integrat|mak|us|plac|put|inject|append|implement)\w{0,4}"
        r"\b[^.\n]{0,50}\bcode (?:snippet|section|block|excerpt|segment|fragment|piece|sample)\b[^.\n]{0,60}\byour\s+"
        r"(?:\w+\s+)?(?:implementation|codebase|code|solution|program|project|application|script)\b",
        0.7,
    ),
    # the first of these, in other languages
    (
        r"\bignora\s+(?:todas?\s+)?(?:las|tutte|le|istruzioni|instrucciones)\b|\bolvida\s+(?:todo|todas|las)\b|"
        r"\boubli(?:e|ez)\s+(?:toutes|tout|les)\b|\bignor(?:e|ez)\s+(?:toutes\s+)?les\s+instructions\b|"
        r"\bvergiss\s+(?:alle|alles|die)\b|\bignorier\w{0,3}\s+(?:alle|die)\b|\bdimentica\s+(?:tutto|tutte|le)\b",
        0.8,
    ),
)
_CHINESE = "忽略(?:之前|以上|前面|上面|所有|先前)|忽视(?:之前|以上|所有)|無視(?:して|しろ)"

_WEAK = (
    # roles; rules; secrets; orders; hiding; names; harm
    (
        r"\b(?:pretend|act|roleplay|role-play|imagine|answer|respond)\b[^.\n]{0,40}"
        r"\b(?:to be|as|you are|perspective of)\b",
        0.25,
    ),
    (r"\b(?:no (?:longer|rules|restrictions|limits|ethic\w{0,4})|unfiltered|uncensored|opposite of whatever)\b", 0.25),
    (
        r"\b(?:system prompt|secret word|your (?:instructions|prompt|rules|programming)|all instructions|passwords?)\b",
        0.25,
    ),
    (r"\b(?:you must|you will|you have to|obey|comply|never break character|stay in character)\b", 0.2),
    (r"\b(?:avoid detection|obfuscat\w{0,4}|letter by letter|monitored|circumvent\w{0,3})\b", 0.3),
    (r"\b(?:d\.a\.n|jailbreak\w{0,4}|chatgpt|as an ai|language model|ai model)\b", 0.2),
    (r"\b(?:untrue headline|misinformation|disinformation|malware|keylogger)\b", 0.25),
)
_ORDERS = Automaton([f"(?i:{phrase})".encode() for phrase, _ in _STRONG] + [_CHINESE.encode()])
_HINTS = Automaton([f"(?i:{phrase})".encode() for phrase, _ in _WEAK])
_WEIGHTS = (0.0, *(weight for _, weight in _STRONG), 0.8)
_HINT_WEIGHTS = (0.0, *(weight for _, weight in _WEAK))
_HARMLESS = re.compile(
    r"(?i)\s+(?:errors?|warnings?|examples?|steps?|lines?|notes?|comments?|versions?|chapters?|sections?|emails?)\b"
)
_BEFORE, _AFTER = 96, 400
"""Code points around a trigger that are looked at together."""


def injections(text: str, start: int, end: int) -> tuple[list[Found], int]:
    """Findings in the neighbourhood of a trigger, and up to where nothing more needs to be looked at."""
    low, high = max(0, start - _BEFORE), min(len(text), end + _AFTER)
    # Two windows that follow each other overlap, so that no phrase falls between them.
    settled = high - _BEFORE if high < len(text) else high
    window = text[low:high]
    strong = [
        (_WEIGHTS[which], low + first, low + last)
        for which, first, last in _ORDERS.spots(window)
        if not _HARMLESS.match(text, low + last)
    ]
    hints: dict[int, tuple[int, int]] = {}
    for which, first, last in _HINTS.spots(window):
        hints.setdefault(which, (low + first, low + last))
    score = sum(_HINT_WEIGHTS[which] for which in hints)
    if strong:
        weight, first, last = max(strong, key=lambda item: (item[0], -item[1]))
        return [Found("PROMPT_INJECTION", first, last, round(min(0.98, weight + score / 4), 3))], settled
    if len(hints) >= 3 and score >= 0.65:
        first, last = min(first for first, _ in hints.values()), max(last for _, last in hints.values())
        return [Found("PROMPT_INJECTION", first, last, round(min(0.8, score * 0.75), 3))], settled
    return [], settled
