"""Watch opinions in a stream of texts, and say when negative ones surge.

::

    from mooring import Client
    from mooring.monitor import OpinionMonitor, read_texts, watch

    with Client("grpc://127.0.0.1:8001") as client:
        monitor = OpinionMonitor()
        for event in watch(monitor, client.task("opinion_monitor"), read_texts("news.csv")):
            print(event.to_json())

``docs/monitor.md`` has the rule, what its false-alarm rate means, and measured delays; ``mooring monitor``
does the same from a shell.
"""

from mooring._monitor.events import Alert, AlertEnded
from mooring._monitor.monitor import MonitorCounters, OpinionMonitor
from mooring._monitor.policy import MonitorPolicy
from mooring._monitor.rule import surge_p_value
from mooring._monitor.texts import TimedText, read_texts
from mooring._monitor.timeline import Timeline, WindowPoint
from mooring._monitor.watch import awatch, watch
from mooring._monitor.webhook import Webhook

__all__ = [
    "Alert",
    "AlertEnded",
    "MonitorCounters",
    "MonitorPolicy",
    "OpinionMonitor",
    "TimedText",
    "Timeline",
    "Webhook",
    "WindowPoint",
    "awatch",
    "read_texts",
    "surge_p_value",
    "watch",
]
