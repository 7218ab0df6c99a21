"""The namespace level with one thing of its hardening left out, for ``escape_runner.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from holdfast.sandbox import bwrap, masks, namespace

PREFIX = "namespace without "
OPTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "a network of its own": (("--unshare-net",),),
    "IPC of its own": (("--unshare-ipc",),),
    "a host name of its own": (("--unshare-uts",), ("--hostname", bwrap.HOSTNAME)),
    "a read-only root": (("--remount-ro", "/"),),
    "a filter": (("--add-seccomp-fd", "*"),),
}
"""What is left out to the options of bubblewrap that are; ``*`` stands for any word."""
NAMES = (*OPTIONS, "hidden files", "a uid of its own")


@contextlib.contextmanager
def weakened(name: str) -> Iterator[None]:
    """Leave one thing out of every boundary that is started meanwhile."""
    with contextlib.ExitStack() as stack:
        if name in OPTIONS:
            stack.enter_context(mock.patch.object(bwrap, "arguments", _without(OPTIONS[name], bwrap.arguments)))
            # The start waits for the filter, which one of these does not have.
            stack.enter_context(mock.patch.object(namespace, "_filtered", return_value=True))
        elif name == "hidden files":
            stack.enter_context(mock.patch.object(masks, "find", return_value=([], [])))
        else:
            stack.enter_context(mock.patch.object(namespace, "_outer", _as_root(namespace._outer)))
        yield


def _without(options: tuple[tuple[str, ...], ...], made: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    def arguments(plan: Any) -> list[str]:
        words = made(plan)
        for option in options:
            at = 0
            found = False
            while at < len(words):
                if all(want in ("*", word) for want, word in zip(option, words[at:], strict=False)):
                    del words[at : at + len(option)]
                    found = True
                else:
                    at += 1
            assert found, f"there is no {' '.join(option)} to leave out"
        return words

    return arguments


def _as_root(made: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def outer(*args: Any) -> list[str]:
        command = made(*args)
        for option in ("--setuid", "--setgid", "--reuid", "--regid"):
            if option in command:
                command[command.index(option) + 1] = "0"
        return command

    return outer
