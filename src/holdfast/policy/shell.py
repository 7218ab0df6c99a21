"""A shell command taken apart: the programs that it would run, with their arguments, and what it does around them.

Only what is understood for certain is taken apart (POSIX.1-2017, chapter 2, without its expansions); anything else is
refused, so that no reading of the shell differs from this one.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

import msgspec


class Unreadable(Exception):
    """The command is not understood for certain."""


class Command(msgspec.Struct, frozen=True):
    """One program with its arguments."""

    argv: tuple[str, ...]
    writes: tuple[str, ...] = ()
    """Files that its output goes to."""
    reads: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """The program's name without its folder."""
        return posixpath.basename(self.argv[0]) if self.argv else ""


class Line(msgspec.Struct, frozen=True):
    """A command line."""

    commands: tuple[Command, ...]
    piped: bool = False
    chained: bool = False
    background: bool = False


_OPERATORS = ("&&", "||", ";;", "|&", ">>", "<<<", "<<", ">&", "<&", "&>", ">|", "<>", "|", "&", ";", "<", ">", "\n")
_REDIRECTS = frozenset({">", ">>", "<", ">|", "&>", "<>"})
_WORDS = frozenset(
    [
        "if",
        "then",
        "else",
        "elif",
        "fi",
        "for",
        "while",
        "until",
        "do",
        "done",
        "case",
        "esac",
        "function",
        "select",
        "time",
        "coproc",
        "in",
        "{",
        "}",
        "!",
        "[[",
        "]]",
    ]
)
_WRAPPERS = {
    # programs that run another one: options with a value of their own
    "env": ("-u", "-C", "-S", "--unset", "--chdir"),
    "sudo": ("-u", "-g", "-h", "-p", "-C", "-T"),
    "doas": ("-u", "-C"),
    "nohup": (),
    "nice": ("-n",),
    "ionice": ("-c", "-n"),
    "timeout": ("-s", "-k"),
    "setsid": (),
    "stdbuf": ("-i", "-o", "-e"),
    "xargs": ("-n", "-I", "-P", "-L", "-d", "-a", "-s", "-E"),
    "command": (),
    "exec": ("-a",),
    "time": ("-f", "-o"),
    "busybox": (),
    "chroot": (),
    "strace": ("-e", "-o", "-p"),
    "unshare": (),
    "watch": ("-n",),
}
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "ash", "fish"})


def parse(text: str, depth: int = 0) -> Line:
    """Take a command line apart.

    Raises:
        Unreadable: it uses expansions, here-documents, compound commands, or does not end.
    """
    if depth > 4:
        raise Unreadable("shells within shells")
    commands: list[Command] = []
    piped = chained = background = False
    words: list[str] = []
    writes: list[str] = []
    reads: list[str] = []
    redirect = ""

    def close() -> None:
        nonlocal words, writes, reads
        if redirect:
            raise Unreadable("a redirection without a file")
        if words:
            commands.extend(_unwrapped(Command(tuple(words), tuple(writes), tuple(reads)), depth))
        elif writes or reads:
            raise Unreadable("a redirection without a program")
        words, writes, reads = [], [], []

    for symbol, operator in _tokens(text):
        if not operator:
            if redirect:
                (reads if redirect == "<" else writes).append(symbol)
                redirect = ""
            elif not words and symbol in _WORDS:
                raise Unreadable("a compound command")
            elif not words and _assignment(symbol):
                continue
            else:
                words.append(symbol)
            continue
        if symbol in _REDIRECTS:
            # A number before a redirection names the descriptor.
            if words and words[-1].isdigit() and len(words[-1]) == 1 and len(words) > 1:
                words.pop()
            redirect = symbol
            continue
        if symbol in (">&", "<&"):
            redirect = ">"
            continue
        if symbol not in ("|", "|&", "&&", "||", ";", "\n", "&"):
            raise Unreadable("a here-document")
        close()
        piped = piped or symbol in ("|", "|&")
        chained = chained or symbol in ("&&", "||", ";", "\n")
        background = background or symbol == "&"
    close()
    return Line(tuple(commands), piped, chained, background)


def of(argv: Sequence[str]) -> Line:
    """A program that is started without a shell.

    Raises:
        Unreadable: it starts a shell whose command is not understood.
    """
    if not argv:
        raise Unreadable("no program")
    return Line(tuple(_unwrapped(Command(tuple(argv)), 0)))


def _assignment(token: str) -> bool:
    name, equals, _ = token.partition("=")
    return bool(equals) and name.isidentifier()


def _unwrapped(command: Command, depth: int) -> Iterator[Command]:
    """The command, and what it would run in turn."""
    yield command
    program, rest = command.program, list(command.argv[1:])
    if program in _SHELLS:
        for index, word in enumerate(rest):
            if word.startswith("-") and not word.startswith("--") and "c" in word:
                if index + 1 >= len(rest):
                    raise Unreadable("a shell without its command")
                yield from parse(rest[index + 1], depth + 1).commands
                return
        return
    if program == "find":
        for index, word in enumerate(rest):
            if word in ("-exec", "-execdir", "-ok", "-okdir"):
                inner = rest[index + 1 :]
                stop = next((at for at, part in enumerate(inner) if part in (";", "+")), len(inner))
                if inner[:stop]:
                    yield from _unwrapped(Command(tuple(inner[:stop])), depth + 1)
        return
    if program not in _WRAPPERS or depth > 8:
        return
    valued = _WRAPPERS[program]
    while rest:
        word = rest[0]
        if program == "env" and word in ("-S", "--split-string"):
            raise Unreadable("env splits a string")
        if word == "--":
            rest = rest[1:]
            break
        if word in valued:
            rest = rest[2:]
        elif word.startswith("-") or (program == "env" and _assignment(word)):
            rest = rest[1:]
        elif program in ("timeout", "chroot"):
            rest = rest[1:]
            break
        else:
            break
    if rest:
        yield from _unwrapped(Command(tuple(rest)), depth + 1)


def _tokens(text: str) -> Iterator[tuple[str, bool]]:
    """Words and operators. Quotes are removed; whatever would be expanded is refused."""
    at, size = 0, len(text)
    word: list[str] | None = None
    while at < size:
        char = text[at]
        if char == "\0":
            raise Unreadable("a null character")
        if char in " \t\r":
            if word is not None:
                yield "".join(word), False
                word = None
            at += 1
        elif char == "#" and word is None:
            at = text.find("\n", at) if "\n" in text[at:] else size
        elif char == "'":
            close = text.find("'", at + 1)
            if close < 0:
                raise Unreadable("a quote that does not end")
            word = (word or []) + [text[at + 1 : close]]
            at = close + 1
        elif char == '"':
            part, at = _quoted(text, at + 1)
            word = [*(word or []), part]
        elif char == "\\":
            if at + 1 >= size:
                raise Unreadable("a backslash at the end")
            word = (word or []) + ([] if text[at + 1] == "\n" else [text[at + 1]])
            at += 2
        elif char in "$`":
            raise Unreadable("an expansion")
        elif char in "*?[" or (char == "~" and word is None) or char in "(){}":
            if char in "(){}":
                raise Unreadable("a group or an expansion of braces")
            word = [*(word or []), char]
            at += 1
        else:
            operator = next((one for one in _OPERATORS if text.startswith(one, at)), "")
            if operator:
                if word is not None:
                    yield "".join(word), False
                    word = None
                yield operator, True
                at += len(operator)
            else:
                word = [*(word or []), char]
                at += 1
    if word is not None:
        yield "".join(word), False


def _quoted(text: str, at: int) -> tuple[str, int]:
    parts: list[str] = []
    while at < len(text):
        char = text[at]
        if char == '"':
            return "".join(parts), at + 1
        if char in "$`":
            raise Unreadable("an expansion")
        if char == "\\" and at + 1 < len(text) and text[at + 1] in '"\\$`\n':
            parts.append(text[at + 1] if text[at + 1] != "\n" else "")
            at += 2
            continue
        parts.append(char)
        at += 1
    raise Unreadable("a quote that does not end")
