"""Load a text model over gRPC and over HTTP.

::

    locust -f loadtests/locustfile.py --headless -u 8 -t 20s \\
        --grpc-url grpc://127.0.0.1:8001 --http-url http://127.0.0.1:8000 --model ner

Name ``GrpcUser`` or ``HttpUser`` at the end to use one protocol alone.
"""

from mooring_loadtests.users import GrpcUser, HttpUser

__all__ = ["GrpcUser", "HttpUser"]
