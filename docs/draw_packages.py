"""Draw the packages of sb3_dmamba from their imports: `python docs/draw_packages.py`.

A package (or top-level module) stands above every one that it imports.
"""

from __future__ import annotations

import ast
from pathlib import Path
from xml.sax.saxutils import escape

PACKAGE = Path(__file__).parents[1] / "sb3_dmamba"
PICTURE = Path(__file__).parent / "images" / "packages.svg"

FLOW = ("source", "Trajectories", "WindowBatch", "policy", "EvaluationReport")
STEPS = ("load_trajectories", "WindowSampler", "fit", "evaluate")

WIDTH, MARGIN, GAP = 960, 24, 14
BOX_HEIGHT, ROW_HEIGHT = 40, 62
COLOURS = ("#dbeafe", "#dcfce7", "#fef9c3", "#fae8ff")


def find_imports(package: Path) -> dict[str, set[str]]:
    """Return what each package imports of the others."""
    homes = _find_homes(package / "__init__.py")
    packages: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        if not name.startswith("__"):
            found = {homes.get(name, name) for name in _names_imported(path)}
            packages.setdefault(name, set()).update(found)
    return {name: found & packages.keys() - {name} for name, found in packages.items()}


def _find_homes(front: Path) -> dict[str, str]:
    """Return the package that each public name comes from."""
    for node in ast.walk(ast.parse(front.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            homes: dict[str, str] = ast.literal_eval(node.value)
            return {name: home.split(".")[0] for name, home in homes.items()}
    raise LookupError(f"{front} has no _HOMES, which say where the public names come from")


def _names_imported(path: Path) -> set[str]:
    """Return what a module imports of sb3_dmamba: packages and public names."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    split = [name.split(".") for name in names]
    return {parts[1] for parts in split if parts[0] == "sb3_dmamba" and len(parts) > 1}


def stack(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the packages in rows, the lowest first: each stands on what it imports."""
    levels: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in levels:
            levels[name] = 1 + max((level(other) for other in imports[name]), default=-1)
        return levels[name]

    rows: list[list[str]] = []
    for name in sorted(imports, key=lambda name: (level(name), name)):
        if level(name) == len(rows):
            rows.append([])
        rows[-1].append(name)
    return rows


def _box(x: float, y: float, width: float, text: str, colour: str) -> str:
    middle_x, middle_y = x + width / 2, y + BOX_HEIGHT / 2
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="8" '
        f'fill="{colour}" stroke="#64748b"/>'
        f'<text x="{middle_x:.0f}" y="{middle_y:.0f}" dominant-baseline="central" '
        f'text-anchor="middle">{escape(text)}</text>'
    )


def _draw_flow(y: float) -> list[str]:
    """Draw how data flows, one way."""
    pitch = (WIDTH - 2 * MARGIN) / len(FLOW)
    width = pitch - 44
    parts = []
    for number, name in enumerate(FLOW):
        x = MARGIN + 22 + number * pitch
        parts.append(_box(x, y, width, name, "#ffffff"))
        if number < len(STEPS):
            start, end, middle = x + width + 4, x + pitch - 6, y + BOX_HEIGHT / 2
            parts.append(
                f'<line x1="{start:.0f}" y1="{middle:.0f}" x2="{end:.0f}" y2="{middle:.0f}" '
                f'stroke="#334155" stroke-width="1.5" marker-end="url(#arrow)"/>'
                f'<text class="small" x="{(start + end) / 2:.0f}" y="{y - 8:.0f}" '
                f'text-anchor="middle">{STEPS[number]}</text>'
            )
    return parts


def draw(imports: dict[str, set[str]]) -> str:
    """Return the picture, as SVG."""
    rows = stack(imports)[::-1]
    top = 120
    height = top + len(rows) * ROW_HEIGHT + 28
    parts = _draw_flow(46)
    for number, row in enumerate(rows):
        pitch = (WIDTH - 2 * MARGIN + GAP) / len(row)
        width = min(pitch - GAP, 190)
        first = (WIDTH - len(row) * width - (len(row) - 1) * GAP) / 2
        y = top + number * ROW_HEIGHT
        for place, name in enumerate(row):
            x = first + place * (width + GAP)
            parts.append(_box(x, y, width, name, COLOURS[number % len(COLOURS)]))
    caption = "A package imports only packages that stand below it."
    parts.append(
        f'<text class="small" x="{WIDTH / 2:.0f}" y="{height - 14}" text-anchor="middle">'
        f"{caption}</text>"
    )
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">
<title>How data flows, and the packages of sb3_dmamba: {caption}</title>
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#334155"/></marker></defs>
<style>text {{ font: 14px sans-serif; fill: #0f172a; }} .small {{ font-size: 12px; }}</style>
<rect width="{WIDTH}" height="{height}" rx="12" fill="#f8fafc"/>
{body}
</svg>
"""


if __name__ == "__main__":
    PICTURE.write_text(draw(find_imports(PACKAGE)), encoding="utf-8")
