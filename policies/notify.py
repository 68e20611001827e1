"""Send notifications for all activity."""

import re

from pulumi_policy import EnforcementLevel, PolicyResource, Severity

from policies.policy import Config, Guideline, Resource, Stack, Violations, given
from policies.resources import AWS_INSTANCE, SERVERS, TELL_SERVERS, about, linked
from policies.user_data import packages, told

GUIDELINE = Guideline("Send notifications for all activity")

_WATCHERS = {
    "monit",
    "falco",
    "wazuh-agent",
    "ossec-hids-agent",
    "datadog-agent",
    "newrelic-infra",
    "zabbix-agent",
    "crowdsec",
}
_TOPIC = "aws:sns/topic:Topic"
_FLOW_LOG = "aws:ec2/flowLog:FlowLog"
_TRAIL = "aws:cloudtrail/trail:Trail"


@GUIDELINE.stack_rule(
    "server-without-alerts",
    "Somebody is told when a person logs in to a server or a service fails",
    section="3.10",
    severity=Severity.HIGH,
    types=SERVERS,
    steps="Watch the server: monit as in the guide, an agent, or CloudWatch alarms with an SNS topic.",
)
def _without_alerts(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    if about(resource, stack, ["uds:monit:Monit"], r"\b(monit|alert|alarm)"):
        return
    if resource.resource_type == AWS_INSTANCE and any(
        other.resource_type == "aws:cloudwatch/metricAlarm:MetricAlarm" for other in stack
    ):
        return
    # A package alone watches nothing: it is set up, too.
    data = told(resource)
    set_up = "\n".join([data.script, *data.files]) if data else ""
    if any(re.search(rf"\b{name}\b", set_up) for name in _WATCHERS):
        return
    yield "nobody is told of what happens on it"


@GUIDELINE.stack_rule(
    "topic-without-subscription",
    "Notifications reach somebody",
    section="3.10",
    severity=Severity.MEDIUM,
    types=[_TOPIC],
    steps="Add aws.sns.TopicSubscription with the address of the people on duty.",
)
def _nobody_subscribed(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    subscriptions = [other for other in stack if other.resource_type == "aws:sns/topicSubscription:TopicSubscription"]
    if not any(topic.urn == resource.urn for one in subscriptions for topic in linked(one, "topic")):
        yield "has no subscriber"


@GUIDELINE.rule(
    "alarm-without-action",
    "An alarm tells somebody",
    section="3.10",
    severity=Severity.MEDIUM,
    types=["aws:cloudwatch/metricAlarm:MetricAlarm"],
    steps="Name an SNS topic in alarmActions, and leave actionsEnabled on.",
)
def _silent_alarm(resource: Resource, _config: Config) -> Violations:
    if resource.props.get("actionsEnabled") is False:
        yield "has its actions switched off"
    elif not given(resource.props, "alarmActions") or not len(resource.props["alarmActions"]):
        yield "has no action"


@GUIDELINE.stack_rule(
    "vpc-without-flow-logs",
    "The traffic of a network is recorded",
    section="3.10",
    severity=Severity.MEDIUM,
    types=["aws:ec2/vpc:Vpc"],
    steps='Add aws.ec2.FlowLog(vpc_id=..., traffic_type="ALL").',
)
def _no_flow_logs(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    logs = [other for other in stack if other.resource_type == _FLOW_LOG]
    if not any(vpc.urn == resource.urn for log in logs for vpc in linked(log, "vpcId")):
        yield "has no flow log"


@GUIDELINE.rule(
    "trail-incomplete",
    "The record of an account's activity is whole and can be trusted",
    section="3.10",
    severity=Severity.MEDIUM,
    types=[_TRAIL],
    steps="Set isMultiRegionTrail and enableLogFileValidation to true, and leave enableLogging on.",
)
def _incomplete(resource: Resource, _config: Config) -> Violations:
    if resource.props.get("enableLogging") is False:
        yield "is switched off"
    if not resource.props.get("isMultiRegionTrail"):
        yield "records one region only"
    if not resource.props.get("enableLogFileValidation"):
        yield "has log files that could be changed unnoticed"


@GUIDELINE.rule(
    "logins-not-logged",
    "sshd writes down who logs in, and with which key",
    section="3.10",
    severity=Severity.MEDIUM,
    types=TELL_SERVERS,
    steps="Set LogLevel INFO or VERBOSE in sshd's configuration.",
)
def _log_level(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    settings = data.sshd() if data else None
    level = (settings or {}).get("loglevel", "INFO").upper()
    if level in ("QUIET", "FATAL", "ERROR"):
        yield f"sets LogLevel {level}, with which sshd is silent about logins"


@GUIDELINE.rule(
    "journal-lost-at-reboot",
    "The log of a server survives its reboot",
    section="3.10",
    severity=Severity.LOW,
    types=SERVERS,
    steps="Write Storage=persistent to a file in /etc/systemd/journald.conf.d, or install rsyslog.",
    level=EnforcementLevel.ADVISORY,
)
def _lost_journal(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    kept = any("Storage=persistent" in text for path, text in data.files.items() if "journald" in path)
    if not (kept or "rsyslog" in packages(data) or "/var/log/journal" in data.script):
        yield "keeps its journal in memory"
