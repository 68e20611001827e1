"""What S3 in a rehearsal asks for beside what moto does."""

import json

import pytest

from rehearsal.aws.permissions import allowed, more_actions

BUCKET = "arn:aws:s3:::backups"
PUT = json.dumps(
    {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:PutObject", "Resource": f"{BUCKET}/*"}}
)


@pytest.mark.parametrize(
    ("method", "query", "headers", "wanted"),
    [
        ("PUT", {}, {"x-amz-checksum-sha256": "x", "content-md5": "x"}, set()),
        ("PUT", {"partNumber": "1", "uploadId": "x"}, {}, set()),
        ("PUT", {"retention": ""}, {}, {"s3:PutObjectRetention"}),
        ("PUT", {"legal-hold": ""}, {}, {"s3:PutObjectLegalHold"}),
        ("PUT", {}, {"x-amz-object-lock-mode": "GOVERNANCE"}, {"s3:PutObjectRetention"}),
        ("POST", {"uploads": ""}, {"x-amz-object-lock-retain-until-date": "2020"}, {"s3:PutObjectRetention"}),
        ("PUT", {}, {"x-amz-object-lock-legal-hold": "OFF"}, {"s3:PutObjectLegalHold"}),
        ("PUT", {}, {"x-amz-acl": "public-read"}, {"s3:PutObjectAcl"}),
        ("PUT", {}, {"x-amz-grant-read": "id=1"}, {"s3:PutObjectAcl"}),
        ("PUT", {}, {"x-amz-tagging": "a=b"}, {"s3:PutObjectTagging"}),
        ("PUT", {}, {"x-amz-copy-source": "/backups/a%20b?versionId=1"}, {"s3:GetObject"}),
        ("DELETE", {}, {"x-amz-bypass-governance-retention": "TRUE"}, {"s3:BypassGovernanceRetention"}),
    ],
)
def test_what_a_request_does_more_needs_more(
    method: str, query: dict[str, str], headers: dict[str, str], wanted: set[str]
) -> None:
    found = list(more_actions(method, query, headers))
    assert {action for action, _ in found} == wanted
    assert not any(allowed([PUT], action, about or f"{BUCKET}/x") for action, about in found)


def test_a_copy_is_about_what_is_copied() -> None:
    assert list(more_actions("PUT", {}, {"x-amz-copy-source": "/other/a%20b?versionId=1"})) == [
        ("s3:GetObject", "arn:aws:s3:::other/a b")
    ]


def test_only_what_a_statement_says_is_allowed() -> None:
    assert allowed([PUT], "s3:PutObject", f"{BUCKET}/x")
    assert not allowed([PUT], "s3:PutObject", "arn:aws:s3:::other/x")
    assert not allowed([PUT], "s3:PutObjectRetention", f"{BUCKET}/x")
    assert not allowed([], "s3:PutObject", f"{BUCKET}/x")
    everything = json.dumps({"Statement": [{"Effect": "Allow", "Action": ["S3:*"], "Resource": ["*"]}]})
    assert allowed([everything], "s3:PutObjectRetention", f"{BUCKET}/x")
    denial = json.dumps({"Statement": [{"Effect": "Deny", "Action": "s3:Put*", "Resource": "*", "Condition": {}}]})
    assert not allowed([everything, denial], "s3:PutObject", f"{BUCKET}/x")
    condition = json.dumps({"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {}}]})
    assert not allowed([condition], "s3:PutObject", f"{BUCKET}/x")
