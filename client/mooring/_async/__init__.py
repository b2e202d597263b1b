"""The client for coroutines, which is the source of the one for threads.

``.ci/generate_sync.py`` makes ``mooring/_sync`` from these modules; a test compares the two.
"""
