"""Commands taken apart as the shell itself would, or not at all."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.policy.shell import Unreadable, of, parse


def programs(text: str) -> list[str]:
    return [command.program for command in parse(text).commands]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ls -l", ["ls"]),
        ("A=1 B=2 ls", ["ls"]),
        ("ls|wc -l", ["ls", "wc"]),
        ("ls && rm x || echo no; date", ["ls", "rm", "echo", "date"]),
        ("l''s -l", ["ls"]),
        ("\\ls", ["ls"]),
        ('"l"s', ["ls"]),
        ("ls # rm x", ["ls"]),
        ("ls\nrm x", ["ls", "rm"]),
        ("/usr/bin/env -u X A=1 rm x", ["env", "rm"]),
        ("sudo -u root rm x", ["sudo", "rm"]),
        ("timeout -s KILL 5 rm x", ["timeout", "rm"]),
        ("nohup nice -n 5 rm x", ["nohup", "nice", "rm"]),
        ("bash -lc 'ls | rm x'", ["bash", "ls", "rm"]),
        ("sh -c \"sh -c 'rm x'\"", ["sh", "sh", "rm"]),
        ("find . -name x -exec rm {} +".replace("{}", "'{}'"), ["find", "rm"]),
        ("ls >out 2>&1 <in", ["ls"]),
    ],
)
def test_programs(text: str, expected: list[str]) -> None:
    assert programs(text) == expected


def test_redirections() -> None:
    line = parse("sort <in >out 2>/dev/null")
    assert (line.commands[0].reads, line.commands[0].writes) == (("in",), ("out", "/dev/null"))
    assert line.commands[0].argv == ("sort",)
    line = parse("a | b && c &")
    assert (line.piped, line.chained, line.background) == (True, True, True)
    assert of(["rm", "a; b"]).commands[0].argv == ("rm", "a; b")
    assert [command.program for command in of(["bash", "-c", "rm x"]).commands] == ["bash", "rm"]


@pytest.mark.parametrize(
    "text",
    [
        *("echo $(rm x)", "echo `rm x`", "echo $HOME", 'echo "$x"', "cat <<EOF\nx\nEOF", "(ls)", "{ ls; }", "ls {a,b}"),
        *("if true; then ls; fi", "for x in a; do ls; done", "echo 'x", 'echo "x', "ls \\", "ls >", "> out", "ls\0rm"),
        *("env -S 'rm x'", "f() { rm x; }", "sh -c"),
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


def test_nothing() -> None:
    assert parse("  ").commands == ()
    with pytest.raises(Unreadable):
        of([])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="ab '\"\\;|&<>#=é-", min_size=1, max_size=8), min_size=1, max_size=4))
def test_quoted_words_come_out_as_they_are(words: list[str]) -> None:
    line = parse(shlex.join(["echo", *words]))
    assert line.commands[0].argv == ("echo", *words)


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="ab '\"\\;#", max_size=12))
def test_words_are_those_of_the_shell(text: str) -> None:
    try:
        line = parse(f"show {text}")
    except Unreadable:
        return
    script = f'show() {{ for word in "$@"; do printf "%s\\0" "$word"; done; printf "\\1"; }}\nshow {text}\n'
    ran = subprocess.run(["/bin/sh", "-c", script], capture_output=True, timeout=30, check=False)
    words = ran.stdout.split(b"\1")[0].split(b"\0")[:-1]
    assert [word.decode() for word in words] == list(line.commands[0].argv[1:])


def test_it_never_takes_long() -> None:
    with pytest.raises(Unreadable):
        parse("sh -c " + "'" * 3)
    assert len(parse("a;" * 5_000).commands) == 5_000
