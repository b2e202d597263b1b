"""Watch a file of texts with times, print an alert when negative opinions on a topic surge, draw a timeline.

python examples/monitor_opinions.py FILE [URL [PICTURE]]

FILE is .csv or .jsonl with "time" and "text"; a PICTURE needs Mooring's extra [plot].
"""

import sys

from mooring import Client, MooringError
from mooring.monitor import Alert, MonitorPolicy, OpinionMonitor, TimedText, Timeline, read_texts, watch


def main(path: str, url: str = "grpc://127.0.0.1:8001", picture: str | None = None) -> None:
    """Print one line an event, and what became of the texts."""
    timeline = Timeline()
    # At most one false alert in fifty days and topic, on average.
    monitor = OpinionMonitor(MonitorPolicy(false_alarms_per_day=0.02, examples=1), timeline=timeline)
    with Client(url, timeout_s=10.0) as client:
        model = client.task("opinion_monitor")
        for event in watch(monitor, model, read_texts(path), on_failure=report):
            if isinstance(event, Alert):
                rise = f"{event.baseline_share:.0%} to {event.share:.0%} of {event.texts} texts"
                print(f"{event.topic}: negative share from {rise}, such as {event.examples[0]!r}")
            else:
                print(f"{event.topic}: {event.reason}, at most {event.peak_share:.0%}")
    print(monitor.counters)
    if picture is not None:
        timeline.plot(picture)


def report(text: TimedText, error: MooringError) -> None:
    """A text that was not judged."""
    print(f"{text.time_s:.0f}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
