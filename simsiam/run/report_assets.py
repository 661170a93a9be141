"""The style sheet and the script of a report's page. ASCII, for the page is."""

_LIGHT = ("#2a78d6", "#d9591f", "#12855c", "#b27600", "#c2417c", "#4d7a00", "#5b48c2", "#c22f2e", "#737a85", "#80583a")
_DARK = ("#5aa0f2", "#f0814e", "#35b98a", "#dca636", "#ec7fae", "#8fbf3f", "#a89df5", "#f07b7a", "#9aa1ab", "#c49a72")
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
td.word{max-width:24rem;min-width:6rem}
th.number,td.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
tbody tr:last-child td{border-bottom:0}
.others{color:var(--quiet);border-left:4px solid var(--rule);padding-left:.8rem}
.lacking{color:var(--quiet);font-size:.87rem}
.charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr))}
figure{margin:0;padding:.6rem;border:1px solid var(--rule);border-radius:6px;min-width:0}
figcaption{font-weight:600;font-size:.87rem}
figure svg[data-plot],.map{display:block;overflow:visible;width:100%;height:auto;touch-action:pan-y}
.map{max-width:30rem;margin:auto}
.tick{fill:var(--quiet);font-size:11px}
.grid{stroke:var(--rule);fill:none}
.axis{stroke:var(--quiet);fill:none}
.rule{stroke:var(--quiet);stroke-dasharray:2 3;visibility:hidden}
polyline,.line{fill:none;stroke:var(--line);stroke-width:1.6;stroke-linejoin:round;stroke-dasharray:var(--dash);stroke-opacity:.85}
.dots{fill:none;stroke:var(--line);stroke-width:6;stroke-linecap:round;stroke-opacity:.75}
.dense polyline{stroke-width:.8;stroke-opacity:.6}
circle{fill:var(--line)}
.at{visibility:hidden;stroke:var(--page)}
.dimming .series{opacity:.12}
.dimming .series.lit{opacity:1}
.note{float:right;font-weight:400;color:var(--quiet);font-variant-numeric:tabular-nums}
.legend{list-style:none;margin:.2rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:.15rem 1rem;font-size:.8rem}
.values{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,11rem),1fr))}
.legend li{display:flex;gap:.4rem;align-items:center;min-width:0}
.values span{flex:1}
.values b{font-variant-numeric:tabular-nums;white-space:nowrap}
.mark{width:24px;height:8px;flex:none}
.verdicts{list-style:none;padding:0;margin:.5rem 0;display:grid;gap:.5rem}
.verdicts li{display:grid;grid-template-columns:minmax(8rem,14rem) minmax(8rem,1fr) minmax(12rem,2fr);gap:.2rem 1rem;
 font-size:.87rem;align-items:center}
.verdicts b{font-weight:600}
.strip{width:100%;height:12px;border-radius:3px}
.state{width:12px;height:12px;border-radius:3px;display:inline-block}
.ok{fill:var(--c2);background:var(--c2)}
.warn{fill:var(--c3);background:var(--c3)}
.stuck{fill:var(--c6);background:var(--c6)}
.collapsed{fill:var(--c7);background:var(--c7)}
.other{fill:var(--quiet)}
.run{margin-top:1rem;border:1px solid var(--rule);border-radius:6px;padding:.4rem .8rem}
.run[open]{padding-bottom:.8rem}
summary{cursor:pointer}
.run details{margin-top:.6rem}
summary h2{display:inline;margin:0}
small{color:var(--quiet)}
.picture,.near{margin:.8rem 0}
.picture{width:fit-content;max-width:100%}
.picture img{max-width:100%;height:auto;display:block;margin-top:.4rem}
.near p{margin:.2rem 0 .6rem;font-size:.87rem;color:var(--quiet)}
.near .row{display:grid;grid-template-columns:8rem minmax(0,40rem);gap:.1rem .6rem;align-items:center;font-size:.87rem;
 margin-bottom:.25rem}
.near .row div{display:grid;grid-template-columns:repeat(var(--across),1fr);gap:3px;padding-left:8px}
.near i{aspect-ratio:1;background-image:var(--sheet);
 background-size:calc(100% * var(--across)) calc(100% * var(--down));
 border-radius:3px}
.near .query{transform:translateX(-8px)}
.near .same{outline:2px solid var(--c0);outline-offset:-1px}
pre{overflow-x:auto;background:var(--box);padding:.6rem;border-radius:6px;font-size:.8rem}
footer{margin-top:2rem;color:var(--quiet);font-size:.8rem}
@media(max-width:40rem){
 body{padding:.6rem}
 .verdicts li,.near .row{grid-template-columns:minmax(0,1fr)}
}
"""
)

# Without variables, which viewers other than browsers do not know.
PICTURE_STYLE = (
    "text{font-family:system-ui,sans-serif}.head{font-size:16px;font-weight:600}.title{font-size:13px;font-weight:600}"
    f".tick{{font-size:11px}}.page{{fill:#fff}}text{{fill:#1b1d21}}.tick{{fill:#5c626c}}.grid{{stroke:#dfe2e6}}"
    f".axis{{stroke:#5c626c;fill:none}}.rule{{display:none}}polyline{{fill:none;stroke:{_LIGHT[0]};stroke-width:1.6;"
    f"stroke-linejoin:round}}circle{{fill:{_LIGHT[0]}}}"
    "@media(prefers-color-scheme:dark){.page{fill:#16181c}text{fill:#e6e8eb}.tick{fill:#a0a7b1}.grid{stroke:#33373e}"
    f".axis{{stroke:#a0a7b1}}polyline{{stroke:{_DARK[0]}}}circle{{fill:{_DARK[0]}}}}}"
)

# Places are read back from the lines, so the page holds each once; beside them stand the values as they are told.
SCRIPT = """
"use strict";
for (const svg of document.querySelectorAll("svg[data-plot]")) {
  const [wide, left, top, width, height, x0, x1] = svg.dataset.plot.split(" ").map(Number);
  const figure = svg.parentNode, note = figure.querySelector(".note"), rule = svg.querySelector(".rule");
  const shown = Array.from(figure.querySelectorAll(".values b")), last = shown.map(one => one.textContent);
  const xName = svg.querySelector("text[data-x]").textContent;
  const told = value =>
    Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
  let lines = null;
  const read = () => Array.from(svg.querySelectorAll("polyline"), line => {
    const at = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    at.setAttribute("class", "at");
    at.setAttribute("r", 4);
    line.parentNode.append(at);
    const places = line.getAttribute("points").split(" ").map(place => place.split(",").map(Number));
    return {at, places, values: line.dataset.y.split(" ")};
  });
  const show = event => {
    lines = lines || read();
    const box = svg.getBoundingClientRect();
    const x = Math.min(Math.max((event.clientX - box.left) * wide / box.width, left), left + width);
    let nearest = null;
    lines.forEach(({at, places, values}, number) => {
      let low = 0, high = places.length - 1;
      const beside = x < places[low][0] - 4 || x > places[high][0] + 4;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (places[middle][0] < x) low = middle; else high = middle;
      }
      const place = x - places[low][0] < places[high][0] - x ? low : high, [px, py] = places[place];
      at.style.visibility = beside ? "hidden" : "visible";
      shown[number].textContent = beside ? "" : values[place];
      if (beside) return;
      at.setAttribute("cx", px);
      at.setAttribute("cy", py);
      if (nearest === null || Math.abs(px - x) < Math.abs(nearest - x)) nearest = px;
    });
    if (nearest === null) return;
    note.textContent = xName + " " + told(x0 + (nearest - left) / width * (x1 - x0));
    rule.setAttribute("transform", "translate(" + nearest + " 0)");
    rule.style.visibility = "visible";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => {
    note.textContent = "";
    rule.style.visibility = "hidden";
    for (const {at} of lines || []) at.style.visibility = "hidden";
    shown.forEach((one, number) => { one.textContent = last[number]; });
  });
}
for (const legend of document.querySelectorAll("figure .legend")) {
  const figure = legend.parentNode, series = figure.querySelectorAll(".series");
  Array.from(legend.children).forEach((item, number) => {
    item.addEventListener("pointerenter", () => {
      figure.classList.add("dimming");
      series[number].classList.add("lit");
    });
    item.addEventListener("pointerleave", () => {
      figure.classList.remove("dimming");
      series[number].classList.remove("lit");
    });
  });
}
"""
