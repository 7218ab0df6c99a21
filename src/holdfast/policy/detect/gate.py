"""The gate: one pass of one automaton over the whole text tells where the detectors have to look at all.

Every detector's finding contains, or touches, a match of one of these triggers; the detector itself then looks at the
neighbourhood.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.policy.detect.engine import Automaton, Spot

EMAIL, IP4, NUMBER, IP6, IBAN, NAMED, BLOCK, KEYED, LABELLED, ESCAPED, TOKEN, ORDER, LOGIN, MARKUP = range(1, 15)
"""Kinds of triggers: numbers of the groups below."""

_TRIGGERS = (
    rb"@[A-Za-z0-9\x80-\xff-]+\.[A-Za-z\x80-\xff]",
    rb"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d",
    rb"\d(?:[ .\-/()]{0,3}\d){6}",
    rb"(?:[0-9A-Fa-f]{1,4}:){4}|[0-9A-Fa-f]::[0-9A-Fa-f]|(?:^|[\s(\[])::[0-9A-Fa-f]",
    rb"\b[A-Za-z]{2}\d{2}[ .-]?[A-Za-z0-9]{4}",
    rb"\b(?:A(?:KIA|SIA|BIA|CCA)[A-Z0-9]|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|xapp-|[sr]k[-_][A-Za-z]|"
    rb"pk_live|eyJ[A-Za-z0-9]|AIza|ya29\.|npm_[A-Za-z0-9]{8}|hf_[A-Za-z0-9]{8}|SG\.[A-Za-z0-9]{6}|shp(?:at|ca|pa|ss)_|"
    rb"dop_v1_|pypi-[A-Za-z0-9]{6}|whsec_|AGE-SECRET|EAA[A-Za-z0-9]{12}|dckr_pat_|lin_api_|PMAK-|r8_[A-Za-z0-9]{8}|"
    rb"gsk_[A-Za-z0-9]{8}|SK[0-9a-f]{30}|AC[0-9a-f]{30}|key-[0-9a-f]{30}|sq0[a-z]{3}-|hvs\.|dapi[0-9a-f]{30})|"
    rb"hooks\.slack\.com/|\d{8,10}:AA",
    rb"-----BEGIN",
    rb"(?i:passw|pwd|passphrase|secret|token|api[_-]?key|credential|access[_-]?key|private[_-]?key|auth[_-]?key|"
    rb"signing[_-]?key|encryption[_-]?key|accountkey|sharedaccess|authorization|bearer|\bpin\b|\bcv[vc]2?\b|\bcsc\b|"
    rb"connectionstring|conn[_-]?str|[_.-]key[\"']?\s{0,4}[:=]|(?:\b|_)pass[\"']?\s{0,4}[:=]|(?:_|\")auth[\"']?\s{0,4}[:=])|"
    rb"\b(?:curl|wget|mysql|mysqldump|mysqladmin|sshpass|mongo|mongosh|smbclient|ldapsearch)\s+-",
    rb"(?i:\bnhs\b|aadhaar|\bsin\b|\bssn\b|social security|\bnif\b|\bdni\b|codice fiscale|steuer-?id|\bbsn\b|\binsee\b|"
    rb"\bpesel\b|\bcpf\b|\bnpi\b|\bmrn\b|passport|driver'?s? licen[cs]e|date of birth|\bdob\b|medical record|"
    rb"\bborn on\b)",
    rb"%[2-7][0-9A-Fa-f]|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}\\x|&#[xX]?[0-9A-Fa-f]{2,6};",
    rb"[A-Za-z0-9+/_\-]{16}",
    rb"(?i:\b(?:ignor|disregard|forget|overrid|overrul|bypass|jailbreak|unlock|system prompt|pretend|roleplay|"
    rb"role-play|act as\b|acting as|you are now|you're now|from now on|developer mode|"
    rb"do anything now|dan\b|instruct|prompt|"
    rb"new task|new rule|your (?:task|answer|response|reply|output|rules|guideline|training|implementation|code|"
    rb"solution|restriction|ethic|safety)|reveal|repeat (?:the|your|every|all)|print (?:the|your|out|all)|"
    rb"do not (?:tell|mention|inform|alert|notify)|don't (?:tell|mention|inform)|without (?:asking|telling|informing)|"
    rb"opposite mode|no restrictions|unfiltered|uncensored|codebase|password\b.{0,40}\bletter)|"
    rb"<\|?(?:im_start|im_end|system|/?instruct)|\[/?inst\]|"
    rb"###? ?(?:system|instruction)|begin (?:system|admin)|\bvergiss|\bignor[ae]|\bolvida|\boublie|\bdimentica)"
    rb"|\xe5\xbf\xbd\xe7\x95\xa5|\xe5\xbf\xbd\xe8\xa7\x86|\xe7\x84\xa1\xe8\xa6\x96",
    rb"://[^/\s:@]{0,64}:[^/\s@]{1,128}@",
    rb"!\[[^\]\n]{0,200}\]\(\s*<?https?:|<img\b|\]\(\s*https?:|\]:\s*https?:",
)
AUTOMATON = Automaton(_TRIGGERS)


def spots(text: str) -> Iterator[Spot]:
    """Where a detector has to look, in order and without overlaps."""
    return AUTOMATON.spots(text)
