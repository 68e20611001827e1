"""What a secret looks like. Detectors say what they found and never repeat it."""

import re

# Formats that their issuers document, so that none of these is found by accident.
_FORMATS = {
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----|AGE-SECRET-KEY-1[0-9A-Z]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a Slack token or webhook": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T[A-Za-z0-9]+/B",
    "a Stripe key": r"\b[rs]k_live_[A-Za-z0-9]{16,}",
    "a Google API key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a Pulumi access token": r"\bpul-[0-9a-f]{40}\b",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"${]+:(?!//)[^\s/@'\"${]{3,}@",
}

_NAME = r"(?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)"
# NAME=value, "name": "value", --name=value. A value that is another variable, a file or a command isn't one.
_ASSIGNED = re.compile(
    rf"""(?ix) (?<![a-z]) (?:[a-z0-9]+[_-])* {_NAME} ["']? \s* (?:=|:\s) \s*
    (?P<quote>["']?) (?![${{<`%(/~\s]|\\?\$) (?P<value>[^\s"'`;&|<>]{{6,}})"""
)
_HARMLESS = re.compile(r"(?i)^(?:true|false|none|null|yes|no|prompt|required|changeme_?|\*+|!.*|\$[0-9a-z]+\$.*|\[.*)$")
_NAMED = re.compile(rf"(?i)(?:^|[a-z0-9_-]){_NAME}$|^{_NAME}$")

_FOUND = [(what, re.compile(pattern)) for what, pattern in _FORMATS.items()]


def secrets_in(text: str) -> list[str]:
    """What kinds of secrets are in a text."""
    found = [what for what, pattern in _FOUND if pattern.search(text)]
    assigned = _ASSIGNED.finditer(text)
    if any(not _HARMLESS.match(match["value"]) and _is_literal(match) for match in assigned):
        found.append("a password, token or key that is assigned")
    return found


def names_a_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return bool(_NAMED.search(name))


def _is_literal(match: re.Match[str]) -> bool:
    # A word of prose or of a program's own syntax (`password: required-by`) has no digit and no capital inside it;
    # what is quoted was meant to be a value.
    value = match["value"]
    return bool(match["quote"]) or bool(re.search(r"\d|[a-z][A-Z]|[!#%&*+=?@^]", value))
