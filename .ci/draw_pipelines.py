"""Draw every shipped pipeline into docs/systems.md, from the layouts that are served.

    python .ci/draw_pipelines.py           # writes the pictures
    python .ci/draw_pipelines.py --check   # exit code 1 where one is stale

A picture stands between ``<!-- pipeline NAME -->`` and the next ``<!-- end -->``, as a Mermaid diagram.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mooring_build.datasets import read_labels
from mooring_build.layouts import EngineStep, Layout, ModelStep, layout_of
from mooring_build.recipe import Recipe, load_recipe, shipped_recipes
from mooring_build.triton_config import engine_name

PAGE = Path(__file__).resolve().parent.parent / "docs" / "systems.md"
_PLACE = re.compile(r"(<!-- pipeline (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(argv: list[str]) -> int:
    page = PAGE.read_text(encoding="utf-8")
    drawn = _PLACE.sub(lambda place: place[1] + _picture(place[2]) + place[3], page)
    missing = sorted(shipped_recipes().keys() - {place[1] for place in _PLACE.findall(page)})
    if missing:
        print(f"{PAGE.name} has no place for {', '.join(missing)}")
        return 1
    if "--check" in argv:
        if drawn != page:
            print(f"{PAGE.name} is stale: run 'python .ci/draw_pipelines.py'")
        return int(drawn != page)
    PAGE.write_text(drawn, encoding="utf-8")
    return 0


def _picture(name: str) -> str:
    recipe = load_recipe(name)
    layout = layout_of(recipe, read_labels(recipe))
    return "\n".join(["```mermaid", "flowchart LR", *_lines(recipe, layout), "```", ""])


def _lines(recipe: Recipe, layout: Layout) -> list[str]:
    lines = [f"  request([{', '.join(layout.inputs)}])", f"  answer([{', '.join(layout.answers)}])"]
    maker = dict.fromkeys(layout.inputs, "request")
    arrows: dict[tuple[str, str], list[str]] = {}
    for number, step in enumerate(layout.steps):
        node = f"step{number}"
        if isinstance(step, ModelStep):
            lines.append(f'  {node}[["{step.model}"]]')
            takes, gives = list(step.inputs.values()), list(step.outputs.values())
        elif isinstance(step, EngineStep):
            lines.append(f'  {node}[/"{engine_name(recipe, recipe.export.engine)}"/]')
            takes, gives = list(step.inputs), [step.output]
        else:
            lines.append(f'  {node}["{recipe.name}_{step.suffix}"]')
            takes, gives = list(step.inputs), list(step.outputs)
        for tensor in takes:
            arrows.setdefault((maker[tensor], node), []).append(tensor)
        maker |= dict.fromkeys(gives, node)
    for tensor in layout.answers:
        arrows.setdefault((maker[tensor], "answer"), [])
    for (start, end), tensors in arrows.items():
        label = f"|{', '.join(tensors)}|" if tensors and start != "request" else ""
        lines.append(f"  {start} -->{label} {end}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
