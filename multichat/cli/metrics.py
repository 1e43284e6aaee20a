"""The options of `serve` for its metrics."""

import importlib.util
from typing import Annotated

import typer

from multichat.cli.process import UsageMistake

__all__ = ["LOOPBACK", "MetricsHost", "MetricsPort", "check_extra"]

LOOPBACK = "127.0.0.1"
"""Where the metrics are unless an option says otherwise: they have no password."""

MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="TCP port of /metrics for Prometheus, and of the checks of health /live and /ready; "
        "0: the system chooses.",
        show_default="no metrics",
    ),
]
MetricsHost = Annotated[
    list[str] | None,
    typer.Option(
        help="Address or name for the metrics to listen on; may be repeated.",
        show_default=LOOPBACK,
    ),
]


def check_extra(given: str) -> None:
    """Raise `UsageMistake` if the package for metrics is missing; *given* names the option."""
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageMistake(
            f"{given} needs the extra multichat-trio[metrics]: pip install prometheus-client"
        )
