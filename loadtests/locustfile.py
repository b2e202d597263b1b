"""Load a model over gRPC and over HTTP, as a profile says.

::

    locust -f loadtests/locustfile.py --headless --load-profile steady --set rate=40 \\
        --grpc-url grpc://127.0.0.1:8001 --http-url http://127.0.0.1:8000 --model ner GrpcUser

Name ``GrpcUser`` or ``HttpUser`` at the end to use one protocol alone; both share the load otherwise.
``mooring load`` runs this and writes a report.
"""

from mooring_loadtests.users import GrpcUser, HttpUser, ProfileShape

__all__ = ["GrpcUser", "HttpUser", "ProfileShape"]
