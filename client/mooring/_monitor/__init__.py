"""The parts of :mod:`mooring.monitor`."""
