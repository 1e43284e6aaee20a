"""The rules for alerts: every metric in them is one that a server exports, with these labels.

Prometheus itself does not read them here: its `promtool` is used where it is installed.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from multichat.server.refusals import DISCONNECT_CODES, RefusedFor
from multichat.testing import memory_server
from tests.support.metrics import Metrics, metrics_of
from tests.support.processes import module, program

yaml = module("yaml")

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "deploy" / "alerts.yaml"
GUIDE = (ROOT / "docs" / "operating.md").read_text("utf-8")
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]

# A selector: a name with labels, a range, or neither.
_SELECTOR = re.compile(r"\b(up|multichat_\w+|process_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
_WORDS = {
    *("histogram_quantile", "sum", "by", "instance", "le", "rate", "increase", "or"),
    *("job", "reason", "code", "multichat", "up", "m"),
}


async def exported() -> Metrics:
    async with memory_server() as network:
        return metrics_of(network.server)


@pytest.mark.unit
def test_there_are_five_rules_with_what_an_operator_needs() -> None:
    assert len(set(NAMES)) == 5
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]


@pytest.mark.unit
@pytest.mark.parametrize("name", NAMES)
async def test_every_metric_of_a_rule_is_exported(name: str) -> None:
    [rule] = [each for each in RULES if each["alert"] == name]
    metrics = await exported()
    # Of histograms without a sample, such as of a journal, there is only the name.
    histograms = {f"{each}_bucket" for each, kind in metrics.kinds.items() if kind == "histogram"}
    selectors = _SELECTOR.findall(rule["expr"])
    assert any(metric != "up" for metric, _ in selectors)
    for metric, matchers in selectors:
        assert metric == "up" or metric in metrics.names | histograms, metric
        for label, operator, value in _MATCHER.findall(matchers):
            if metric == "up":
                assert (label, value) == ("job", "multichat")
                continue
            values = {each[label] for each in metrics.labels(metric)}
            wanted = value.split("|") if "~" in operator else [value]
            assert set(wanted) <= values, (metric, label)
        if "quantile" in rule["expr"]:
            assert metric.endswith("_bucket")
        elif metric not in ("up", "multichat_ready"):
            assert re.search(rf"increase\({metric}", rule["expr"]), "a counter only rises"
    assert rule["expr"].count("(") == rule["expr"].count(")")
    rest = _SELECTOR.sub("", rule["expr"])
    assert set(re.findall(r"[a-z]\w*", rest)) <= _WORDS


@pytest.mark.unit
async def test_the_guide_has_every_metric_label_and_alert() -> None:
    section = GUIDE.partition("## Watch it")[2].partition("\n## ")[0]
    metrics = await exported()
    for name, kind in metrics.kinds.items():
        if name.startswith("multichat_") and name != "multichat_info":
            assert f"`{name}{'_total' * (kind == 'counter')}`" in section, name
    told = set(re.findall("`([^`\n]+)`", section.replace("```", "")))
    assert {reason.value for reason in RefusedFor} <= told
    assert {code for code in DISCONNECT_CODES if code in ("closed", "lost", "aborted")} <= told
    assert set(NAMES) <= told
    written = set(re.findall(r"`(multichat_\w+)`", section))
    assert written <= metrics.names | set(metrics.kinds)


@pytest.mark.process
def test_prometheus_accepts_the_rules() -> None:
    command = [program("promtool"), "check", "rules", str(ALERTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
