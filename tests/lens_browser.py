"""What tests of a lens's page do in a browser: walk, point, pin, look at colors."""

from __future__ import annotations

import json

import chromium

# Where the map has put a cell, read off the page: header 42 px, a gap of 3 px below the final row.
PLACE = """(() => {
  const box = document.getElementById('map'), room = document.getElementById('room');
  const [n, rows, final, row, position] = %s;
  const whole = parseFloat(room.style.width), tallest = parseFloat(room.style.height);
  const wide = Math.min(104, Math.floor((whole - 50) / n)), names = whole - n * wide;
  const tall = (tallest - 45) / rows;
  const at = document.getElementById('canvas').getBoundingClientRect();
  const y = row === final ? 42 : 45 + (final - row) * tall - box.scrollTop;
  return [at.x + names + (position + .5) * wide - box.scrollLeft, at.y + y + tall / 2, wide, tall];
})()"""


def walk(tab: chromium.Page, *keys: str) -> str:
    """Press keys in the map and return what is said of the cell."""
    tab.focus("#map")
    for key in keys:
        tab.press(key)
    return tab.run("document.getElementById('live').textContent")


def mouse(tab: chromium.Page, data: dict, row: int, position: int, *, click: bool = False) -> None:
    """Move the pointer to a cell, and click there if so asked."""
    rows = len(data["rows"])
    known = [len(data["prompts"][0]["tokens"]), rows, rows - 1, row, position]
    tab.run("document.getElementById('map').scrollIntoView({block: 'center'})")
    tab.settle()
    x, y, *_ = tab.run(PLACE % json.dumps(known))
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    if click:
        common = {"x": x, "y": y, "button": "left", "clickCount": 1}
        tab.send("Input.dispatchMouseEvent", type="mousePressed", **common)
        tab.send("Input.dispatchMouseEvent", type="mouseReleased", **common)
    tab.settle()


def panel(tab: chromium.Page) -> str:
    return tab.text("#panel h3")


def pinned(tab: chromium.Page) -> list[str]:
    return [text.split("\u25cf ")[1] for text in tab.texts(".pin .go")]


def address(tab: chromium.Page) -> str:
    return tab.run("location.hash")


# Pixels of the map by way of a second canvas, whose reading the browser does not complain about.
PIXELS = """(([x, y, width, height]) => {
  const copy = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  [copy.canvas.width, copy.canvas.height] = [width, height];
  copy.drawImage(document.getElementById('canvas'), -x, -y);
  return [...copy.getImageData(0, 0, width, height).data];
})(%s)"""


def color(tab: chromium.Page, data: dict, row: int, position: int) -> list[int]:
    """The color of a cell, in its upper right corner, where no text is."""
    rows = len(data["rows"])
    known = [len(data["prompts"][0]["tokens"]), rows, rows - 1, row, position]
    x, y, wide, tall = tab.run(PLACE % json.dumps(known))
    left, top = tab.run(
        "(b => [b.x, b.y])(document.getElementById('canvas').getBoundingClientRect())"
    )
    at = [round(x + wide / 2 - 5 - left), round(y - tall / 2 + 4 - top), 1, 1]
    return tab.run(PIXELS % json.dumps(at))[:3]
