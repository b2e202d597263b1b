"""Load tests: Locust users that call served models through :class:`mooring.Client`, and the demo.

Nothing is imported here: Locust patches the standard library for gevent when it is imported, and only a
load generator wants that. :mod:`mooring_loadtests.users` needs Mooring's extra [loadtests].
"""
