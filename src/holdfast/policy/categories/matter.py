"""The categories that look at the matter of an action: what it says, where it comes from, what it would run."""

from __future__ import annotations

from holdfast.policy.categories.base import Category
from holdfast.policy.categories.carddata import PanGuard, SadBlock
from holdfast.policy.categories.code import CodeSandbox, ShellGuard, SqlGuard
from holdfast.policy.categories.contracts import McpDescriptionScan, McpToolPinning, OutputContract, ToolArgumentSchema
from holdfast.policy.categories.flows import DataResidency, LethalTrifecta, MemoryWriteGuard, UntrustedTaint
from holdfast.policy.categories.injected import EncodedPayload, InjectionHeuristic, MarkdownExfil, UnicodeSmuggling
from holdfast.policy.categories.personal import DictionaryMatch, PhiMinimumNecessary, PiiRedact, Pseudonymise
from holdfast.policy.categories.reach import EgressAllowlist, PathGuard, SsrfGuard
from holdfast.policy.categories.secrecy import CanaryLeak, SecretScan, SystemPromptLeak
from holdfast.policy.categories.speech import BannedContent, LanguageAllow

MATTER: tuple[Category, ...] = (
    PiiRedact(),
    PhiMinimumNecessary(),
    PanGuard(),
    SadBlock(),
    Pseudonymise(),
    DictionaryMatch(),
    SecretScan(),
    CanaryLeak(),
    SystemPromptLeak(),
    InjectionHeuristic(),
    UnicodeSmuggling(),
    EncodedPayload(),
    MarkdownExfil(),
    BannedContent(),
    LanguageAllow(),
    UntrustedTaint(),
    LethalTrifecta(),
    MemoryWriteGuard(),
    DataResidency(),
    EgressAllowlist(),
    SsrfGuard(),
    PathGuard(),
    ToolArgumentSchema(),
    OutputContract(),
    McpToolPinning(),
    McpDescriptionScan(),
    SqlGuard(),
    ShellGuard(),
    CodeSandbox(),
)
"""One of each, by family."""
