"""What a request to S3 needs to be allowed, beside what moto asks for by itself.

moto checks signatures, and one action for each request. S3 asks for more where a request does more: for a lock that is
set by hand, for a lock that is got round, for what is copied. (Amazon S3 user guide, "Required permissions for Amazon
S3 API operations".)
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote


def more_actions(method: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """The further actions, and the ARN that each is about, if it isn't the request's own. Headers are small."""
    if method == "PUT":
        if "retention" in query:
            yield "s3:PutObjectRetention", None
        if "legal-hold" in query:
            yield "s3:PutObjectLegalHold", None
    if method in {"PUT", "POST"}:
        if {"x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"} & headers.keys():
            yield "s3:PutObjectRetention", None
        if "x-amz-object-lock-legal-hold" in headers:
            yield "s3:PutObjectLegalHold", None
        if "x-amz-tagging" in headers:
            yield "s3:PutObjectTagging", None
        if "x-amz-acl" in headers or any(name.startswith("x-amz-grant-") for name in headers):
            yield "s3:PutObjectAcl", None
        if source := headers.get("x-amz-copy-source"):
            yield "s3:GetObject", f"arn:aws:s3:::{unquote(source).lstrip('/').partition('?')[0]}"
    if headers.get("x-amz-bypass-governance-retention", "").lower() == "true":
        yield "s3:BypassGovernanceRetention", None


def allowed(policies: Iterable[str], action: str, resource: str) -> bool:
    """Whether policies allow an action, and none denies it. What it allows, AWS does.

    Conditions are taken to hold in denials, and nowhere else.
    """
    statements = [one for policy in policies for one in _list(json.loads(policy)["Statement"])]
    matching = [one for one in statements if _is_about(one, action, resource)]
    return any(one["Effect"] == "Allow" and "Condition" not in one for one in matching) and not any(
        one["Effect"] == "Deny" for one in matching
    )


def _is_about(statement: Mapping[str, Any], action: str, resource: str) -> bool:
    # Actions have no case, resources have.
    actions = any(fnmatchcase(action.lower(), one.lower()) for one in _list(statement.get("Action", [])))
    return actions and any(fnmatchcase(resource, one) for one in _list(statement.get("Resource", [])))


def _list(value: Any) -> list[Any]:  # noqa: ANN401 - JSON
    return value if isinstance(value, list) else [value]
