"""The style sheet and the script of a report's page. ASCII, for the page is."""

_LIGHT = ("#2a78d6", "#d9591f", "#12855c", "#b27600", "#c2417c", "#4d7a00", "#5b48c2", "#c22f2e")
_DARK = ("#5aa0f2", "#f0814e", "#35b98a", "#dca636", "#ec7fae", "#8fbf3f", "#a89df5", "#f07b7a")
_DASHES = ("none", "6 3", "2 3", "8 3 2 3")


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{number}:{colour};" for number, colour in enumerate(colours))


STYLE = (
    ":root{color-scheme:light dark;--page:#fff;--text:#1b1d21;--quiet:#5c626c;--rule:#dfe2e6;--box:#f5f6f8;"
    + _colours(_LIGHT)
    + "}@media(prefers-color-scheme:dark){:root{--page:#16181c;--text:#e6e8eb;--quiet:#a0a7b1;--rule:#33373e;"
    + "--box:#1f2227;"
    + _colours(_DARK)
    + "}}"
    + "".join(f".c{number}{{--line:var(--c{number})}}" for number in range(len(_LIGHT)))
    + "".join(f".d{number}{{--dash:{dash}}}" for number, dash in enumerate(_DASHES))
    + """
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:1rem;background:var(--page);color:var(--text);
 font:15px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.3rem 0}
h2{font-size:1.1rem;margin:1.8rem 0 .5rem}
h3{font-size:1rem;margin:1rem 0 .4rem}
.scroll{overflow-x:auto;max-width:100%;border:1px solid var(--rule);border-radius:6px}
table{border-collapse:collapse;font-size:.87rem;width:100%}
th,td{padding:.35rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule);min-width:4rem;
 overflow-wrap:normal}
th{background:var(--box);font-weight:600}
td.word{max-width:24rem}
th.number,td.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
tbody tr:last-child td{border-bottom:0}
.others{color:var(--quiet);border-left:4px solid var(--rule);padding-left:.8rem}
.charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr))}
figure{margin:0;padding:.6rem;border:1px solid var(--rule);border-radius:6px;min-width:0}
figcaption{font-weight:600;font-size:.87rem}
figure svg[data-plot]{display:block;overflow:visible;width:100%;height:auto;touch-action:pan-y}
.tick{fill:var(--quiet);font-size:11px}
.grid{stroke:var(--rule);fill:none}
.axis{stroke:var(--quiet);fill:none}
.rule{stroke:var(--quiet);stroke-dasharray:2 3;visibility:hidden}
polyline,.line{fill:none;stroke:var(--line);stroke-width:1.6;stroke-linejoin:round;stroke-dasharray:var(--dash);stroke-opacity:.85}
circle{fill:var(--line)}
.note{margin:0;min-height:1.3rem;font-size:.8rem;color:var(--quiet);font-variant-numeric:tabular-nums}
.legend{list-style:none;margin:.2rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:.15rem 1rem;font-size:.8rem}
.mark{width:24px;height:8px}
.picture{margin:.6rem 0}
.picture img{max-width:100%;height:auto;display:block}
pre{overflow-x:auto;background:var(--box);padding:.6rem;border-radius:6px;font-size:.8rem}
footer{margin-top:2rem;color:var(--quiet);font-size:.8rem}
"""
)

# The values are read back from the lines' own places, so the page holds each number once.
SCRIPT = """
"use strict";
for (const svg of document.querySelectorAll("svg[data-plot]")) {
  const [wide, left, top, width, height, x0, x1, y0, y1] = svg.dataset.plot.split(" ").map(Number);
  const note = svg.parentNode.querySelector(".note"), rule = svg.querySelector(".rule");
  const lines = Array.from(svg.querySelectorAll("polyline"), line => ({
    name: line.dataset.name,
    points: line.getAttribute("points").split(" ").map(point => point.split(",").map(Number)),
  }));
  const told = value =>
    Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
  const xName = svg.querySelector("text[data-x]").textContent;
  const show = event => {
    const box = svg.getBoundingClientRect();
    const x = Math.min(Math.max((event.clientX - box.left) * wide / box.width, left), left + width);
    const words = [];
    let at = null;
    for (const {name, points} of lines) {
      let low = 0, high = points.length - 1;
      if (x < points[low][0] - 4 || x > points[high][0] + 4) continue;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (points[middle][0] < x) low = middle; else high = middle;
      }
      const [px, py] = x - points[low][0] < points[high][0] - x ? points[low] : points[high];
      if (at === null || Math.abs(px - x) < Math.abs(at - x)) at = px;
      words.push(name + " " + told(y1 - (py - top) / height * (y1 - y0)));
    }
    if (at === null) return;
    note.textContent = xName + " " + told(x0 + (at - left) / width * (x1 - x0)) + ": " + words.join(", ");
    rule.setAttribute("transform", "translate(" + at + " 0)");
    rule.style.visibility = "visible";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { note.textContent = ""; rule.style.visibility = "hidden"; });
}
"""
