"""One pipeline of a text after the other."""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import PythonStep
from mooring_build.layouts.text import TEXT

#: What :func:`relay` calls the text.
RELAYED = "relayed_text"


def relay(anchor: str) -> PythonStep:
    """Hands the text on, as ``relayed_text``, once a first pipeline has answered.

    Two ensembles in one ensemble must not run side by side: where one of them fails, as with an empty text,
    while the other is under way, tritonserver 2.51.0 (24.10) never answers, and the thread of the model that
    failed never returns, so that later requests hang too. One after the other, a failure is an answer, and
    the second is not run.

    Args:
        anchor: an output of the first pipeline, texts of any number.
    """
    return PythonStep(
        suffix="relay",
        entry_point="relay_model.py",
        shared=(),
        inputs=TEXT | {anchor: (pb.TYPE_STRING, (-1,))},
        outputs={RELAYED: TEXT["text"]},
    )
