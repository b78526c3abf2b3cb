
"use strict";
// Values under the pointer, the button that copies, and the page that loads itself again.

const readings = JSON.parse(document.getElementById("readings").textContent);
const box = document.getElementById("values");
const MOST = 6;

// Shows the values at place `index` of the x-axis; `height` is that of the pointer, in the picture's units.
function show(svg, reading, index, height) {
  const there = reading.lines
    .filter((line) => line.py[index] !== null)
    .map((line) => ({ name: line.name, value: line.ys[index], away: Math.abs(line.py[index] - height), at: line.py[index] }))
    .sort((one, other) => one.away - other.away)
    .slice(0, MOST);
  const closest = there[0];
  there.sort((one, other) => one.at - other.at);
  hide();
  if (!there.length) return;
  for (const point of there) {
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    dot.setAttribute("cx", reading.px[index]);
    dot.setAttribute("cy", point.at);
    dot.setAttribute("r", point === closest ? 3.2 : 2);
    dot.setAttribute("class", "dot");
    svg.append(dot);
  }
  const lines = there.map((point) => {
    const line = document.createElement(point === closest && there.length > 1 ? "b" : "span");
    line.textContent = `${point.name || reading.y}: ${point.value}`;
    return line;
  });
  const head = document.createElement("em");
  head.textContent = `${reading.x} ${reading.xs[index]}`;
  box.replaceChildren(head, ...lines);
  box.hidden = false;
  place(svg, reading.px[index], closest.at);
}

function place(svg, x, y) {
  const point = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
  const size = box.getBoundingClientRect();
  const right = point.x + 14 + size.width < innerWidth;
  box.style.left = `${Math.max(4, right ? point.x + 14 : point.x - 14 - size.width)}px`;
  box.style.top = `${Math.max(4, Math.min(point.y - size.height / 2, innerHeight - size.height - 4))}px`;
}

function hide() {
  box.hidden = true;
  for (const dot of document.querySelectorAll("svg .dot")) dot.remove();
}

function nearest(places, x) {
  let best = 0;
  places.forEach((place, index) => {
    if (Math.abs(place - x) < Math.abs(places[best] - x)) best = index;
  });
  return best;
}

for (const svg of document.querySelectorAll("svg[data-readings]")) {
  const reading = readings[svg.dataset.readings];
  let index = -1;
  const follow = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    index = nearest(reading.px, point.x);
    show(svg, reading, index, point.y);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!way) return;
    event.preventDefault();
    index = Math.min(Math.max(index + way, 0), reading.px.length - 1);
    show(svg, reading, index, 0);
  });
}
addEventListener("scroll", hide, { passive: true });

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(source); // what a reader copies by hand where the browser refuses
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
    }
  });
}

// What the reader has opened stays open when the page loads itself again, also when the last page comes.
const seconds = Number(document.body.dataset.reload || 0);
const kept = `open ${location.pathname}`;
const folds = [...document.querySelectorAll("details")].map((fold) => [fold.querySelector("[id]").id, fold]);
try {
  const open = JSON.parse(sessionStorage.getItem(kept) || "[]");
  for (const [name, fold] of folds) fold.open ||= open.includes(name);
  sessionStorage.removeItem(kept);
} catch {
  // A browser that stores nothing shows them closed.
}
if (seconds) {
  addEventListener("pagehide", () => {
    const open = folds.flatMap(([name, fold]) => (fold.open ? [name] : []));
    try {
      sessionStorage.setItem(kept, JSON.stringify(open));
    } catch {
      // See above.
    }
  });
  setTimeout(() => location.reload(), 1000 * seconds);
}
