# Generated from mooring/_async/__init__.py by .ci/generate_sync.py; change that file.
"""The client for threads, which is the source of the one for threads.

``.ci/generate_sync.py`` makes ``mooring/_sync`` from these modules; a test compares the two.
"""
