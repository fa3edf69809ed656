"""The drawing of the README: `python -m docs.figures.drope` writes docs/figures/drope.svg.

Plain SVG, on a light card of its own, so that it reads the same in light and in dark mode; letters are large enough for
a phone.
"""

import math
from pathlib import Path

WIDTH, HEIGHT = 640, 338
INK, GREY, FAINT = "#1f1f1f", "#5c6670", "#c9ced3"
BLUE, VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito's: the colour-blind can tell them apart
COLUMN = 200  # width of a stage
DIALS = (1.9, 0.8, 0.35, 0.15)  # radians per token: a fast pair of dimensions to a slow one
UNIT = 68  # width of the training context


def text(x: float, y: float, words: str, size: int = 18, color: str = INK, weight: int = 400) -> str:
  return (
    f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{color}" text-anchor="middle">'
    f"{words}</text>"
  )


def dial(x: float, y: float, angle: float, color: str, *, turning: bool) -> str:
  """A rotation as a clock: its hand at `angle` radians from noon; its rim is dashed if it has stopped."""
  radius = 17.0
  hand = (x + 13 * math.sin(angle), y - 13 * math.cos(angle))
  dashes = "" if turning else ' stroke-dasharray="3 3"'
  return "".join(
    [
      f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="#ffffff" stroke="{color}" stroke-width="2"{dashes}/>',
      f'<line x1="{x:g}" y1="{y:g}" x2="{hand[0]:.1f}" y2="{hand[1]:.1f}" stroke="{color}" stroke-width="3" '
      'stroke-linecap="round"/>',
    ]
  )


def arrow(x: float, y: float) -> str:
  return (
    f'<path d="M {x - 11:g} {y:g} h 16 m -7 -7 l 8 7 l -8 7" fill="none" stroke="{GREY}" stroke-width="2.5" '
    'stroke-linecap="round" stroke-linejoin="round"/>'
  )


def context(x: float, y: float, width: float, color: str) -> str:
  return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="16" rx="3" fill="{color}"/>'


def stage(index: int, title: str, below: str, color: str, angles: tuple[float, ...], *, turning: bool) -> list[str]:
  """One of the three stages: its number and name, its four rotations, and a line about them."""
  middle = 20 + COLUMN * (index + 0.5)
  return [
    text(middle, 46, f"{index + 1} {title}", 22, INK, 700),
    *(dial(middle + 42 * (place - 1.5), 86, angle, color, turning=turning) for place, angle in enumerate(angles)),
    text(middle, 133, below, 19, GREY),
  ]


def drawing() -> str:
  first, second, third = (20 + COLUMN * (index + 0.5) for index in range(3))
  left, at = (WIDTH - 8 * UNIT) / 2, 274
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">",
    "<title>DroPE: pretrain with RoPE, drop the rotations, recalibrate briefly, use on longer texts</title>",
    f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#fbfbfa" stroke="{FAINT}"/>',
    *stage(0, "Pretrain", "with rotations", BLUE, tuple(3.0 * rate for rate in DIALS), turning=True),
    *stage(1, "Drop", "no more rotations", VERMILION, (0.0,) * 4, turning=False),
    *stage(2, "Recalibrate", "for a short while", VERMILION, (0.0,) * 4, turning=False),
    arrow((first + second) / 2, 32),
    arrow((second + third) / 2 - 14, 32),
    context(first - UNIT / 2, 152, UNIT, BLUE),
    text(first, 192, "short texts", 19, GREY),
    context(third - UNIT / 2, 152, UNIT, VERMILION),
    text(third, 192, "of the same length", 19, GREY),
    f'<line x1="40" y1="213" x2="{WIDTH - 40}" y2="213" stroke="{FAINT}" stroke-width="1.5"/>',
    text(WIDTH / 2, 251, "4 Use it on texts many times as long", 22, INK, 700),
    context(left, at, 8 * UNIT, "#f3cdb2"),
    context(left, at, UNIT, VERMILION),
    text(left + UNIT / 2, at + 42, "trained", 19, GREY),
    text(left + 4.5 * UNIT, at + 42, "never seen, and yet no angle there is new", 19, GREY),
    "</svg>",
  ]
  return "\n".join(parts) + "\n"


if __name__ == "__main__":
  Path(__file__).with_suffix(".svg").write_text(drawing())
