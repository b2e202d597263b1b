"""From a recipe to a release: fine-tune, export, verify, configure, publish."""

from importlib.util import find_spec

if missing := [name for name in ("pydantic", "torch", "transformers") if find_spec(name) is None]:
    raise ImportError(
        f"mooring_build needs {', '.join(missing)}: install Mooring's extra [build]", name=missing[0]
    )
