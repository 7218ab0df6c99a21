"""Whom a standing kill stops. Pure: the gate, the node and ``decide`` ask the same question here."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.action import Facts, Kill

SCOPES = ("fleet", "tenant", "agent", "workflow", "session", "run")
"""What a kill can name, widest first. A workflow is named ``agent.workflow``."""


def matches(kill: Kill, facts: Facts) -> bool:
    """Whether the kill stops what these facts are about. An unknown scope stops everything (fail closed).

    A kill of an agent, workflow, session or run reaches only its own tenant; one with no tenant reaches all.
    """
    scope = kill.scope
    if scope == "fleet":
        return True
    if scope == "tenant":
        return facts.tenant == kill.name
    if scope not in SCOPES:
        return True
    if kill.tenant not in ("", "*", facts.tenant):
        return False
    if scope == "agent":
        return bool(facts.agent) and facts.agent == kill.name
    if scope == "workflow":
        return f"{facts.agent}.{facts.workflow}" == kill.name
    if scope == "session":
        return bool(facts.session) and facts.session == kill.name
    return bool(facts.run) and facts.run == kill.name


def standing(kills: Iterable[Kill], facts: Facts) -> Kill | None:
    """The first of the kills that stops what these facts are about."""
    for kill in kills:
        if matches(kill, facts):
            return kill
    return None
