"use strict";
// Everything on the page follows from `data` and this state.
const data = JSON.parse(document.getElementById("data").textContent);
const state = { pixel: null, explained: null, mask: null, overlay: false, shown: 6 };
const byId = (id) => document.getElementById(id);
const canvas = document.querySelector("canvas");
const columns = Math.ceil(data.width / data.step), rows = Math.ceil(data.height / data.step);
const SCORES = 5, NAMES = 5;
let grid, labels, photo, overlay;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

function loaded(source) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = source;
  });
}

// The pixel in the middle of a cell, which is the one that the grid knows.
function cell(column, row) {
  const c = Math.min(Math.max(column, 0), columns - 1), r = Math.min(Math.max(row, 0), rows - 1);
  const middle = data.step >> 1;
  return {
    column: c, row: r, exact: false, label: labels[r * columns + c],
    x: Math.min(c * data.step + middle, data.width - 1), y: Math.min(r * data.step + middle, data.height - 1),
    weights: data.masks.map((_, mask) => grid[(mask * rows + r) * columns + c] / 255),
  };
}

function pin(given) {
  return { ...given, exact: true, column: Math.floor(given.x / data.step), row: Math.floor(given.y / data.step) };
}

function choose(pixel) {
  state.pixel = pixel;
  state.explained = null;
  state.mask = null;
  state.shown = 6;
  show();
}

// The name of a class, with an asterisk if it was seen in training.
const named = (index) => data.classes[index] + (data.seen && data.seen[index] ? "*" : "");
const counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const digits = (value) => (value === 0 ? "0" : value < 0.00005 ? "< 0.0001" : value.toFixed(4));

function best(values, count) {
  return [...values.keys()].sort((one, other) => values[other] - values[one]).slice(0, count);
}

function show() {
  const { pixel } = state;
  const scores = data.classes.map((_, index) =>
    pixel.weights.reduce((sum, weight, mask) => sum + weight * data.together[mask][index], 0));
  const order = best(scores, SCORES);
  const own = pixel.label >= 0 ? pixel.label : order[0];
  const explained = state.explained ?? own;
  if (!order.includes(explained)) order.push(explained);
  byId("title").textContent = pixel.label >= 0 ? named(pixel.label) : "no class";
  byId("where").textContent = `Pixel ${pixel.x},${pixel.y}` +
    (pixel.exact ? ", exact" : `; the nearest of those that the page knows, mask weights rounded to 1/255`);
  byId("scores").replaceChildren(...order.map((index) => scoreButton(index, scores[index], index === explained)));
  showRule(explained);
  showVotes(explained, scores[explained]);
  draw();
}

function scoreButton(index, score, pressed) {
  const button = element("button", null, { "aria-pressed": pressed });
  const swatch = element("span", null, { class: "swatch" });
  swatch.style.background = data.colours[index];
  button.append(swatch, element("span", named(index)), element("span", digits(score), { class: "number" }));
  button.onclick = () => {
    state.explained = index;
    show();
    byId("scores").querySelector("[aria-pressed=true]").focus();
  };
  return button;
}

function showRule(explained) {
  const name = data.classes[explained];
  let text = `Votes for ${name}: mask weight × class probability.`;
  if (data.power) {
    const power = data.power[explained];
    text += ` Class probability = query^${+power.toFixed(3)} × CLIP^${+(1 - power).toFixed(3)}`;
    const differ = new Set(data.power).size > 1;
    text += differ ? `, as for classes ${data.seen[explained] ? "" : "not "}seen in training.` : ".";
  }
  byId("rule").textContent = text;
}

function showVotes(explained, score) {
  const votes = state.pixel.weights.map((weight, mask) => weight * data.together[mask][explained]);
  const order = best(votes, data.masks.length);
  const shown = order.slice(0, state.shown), rest = order.slice(state.shown);
  byId("votes").replaceChildren(...shown.map((mask) => voteCard(mask, explained, votes[mask], score)));
  byId("more").hidden = rest.length === 0;
  byId("more").textContent = `${counted(rest.length, "more mask")}: ${digits(rest.reduce((sum, mask) => sum + votes[mask], 0))}`;
}

function voteCard(mask, explained, votes, score) {
  const about = data.masks[mask], card = element("article", null, { class: "mask" });
  const header = element("header", null);
  const button = element("button", `Mask ${about.mask}`, { "aria-pressed": state.mask === mask });
  button.onclick = () => {
    state.mask = state.mask === mask ? null : mask;
    for (const other of document.querySelectorAll(".mask button")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", state.mask === mask);
    draw();
  };
  card.onmouseenter = () => draw(mask);
  card.onmouseleave = () => draw();
  header.append(button, element("b", `${digits(votes)} votes`, { class: "number" }));
  const facts = [`weight ${digits(state.pixel.weights[mask])}`];
  if (about.noObject !== null) facts.push(`no object ${digits(about.noObject)}`);
  if (about.box) facts.push(`box ${about.box.map(Math.round).join(" ")}`);
  if (about.area > 0) facts.push(`${about.area.toLocaleString("en")} px`);
  else if (about.area !== null) facts.push(`${about.area < 0 ? "dropped" : "empty"}: no crop for CLIP`);
  if (about.shares !== null) facts.push(`CLIP saw mask ${about.shares}, which is nearly the same`);
  header.append(element("span", facts.join(" · "), { class: "faint number" }));
  const meter = element("div", null, { class: "meter" }), filled = element("i", null);
  filled.style.width = `${score > 0 ? (100 * votes) / score : 0}%`;
  meter.append(filled);
  const sides = element("div", null, { class: "sides" });
  for (const [title, side] of [["Together", data.together], ["By query", data.query], ["By CLIP", data.clip]]) {
    if (side && side[mask][0] !== null) sides.append(sideList(title, side[mask], explained));
  }
  card.append(header, meter, sides);
  return card;
}

function sideList(title, values, explained) {
  const box = element("div", null), list = element("ol", null), order = best(values, NAMES);
  if (!order.includes(explained)) order.push(explained);
  for (const index of order) {
    const row = element("li", null, index === explained ? { class: "explained" } : {});
    row.append(element("span", named(index), { title: named(index) }));
    row.append(element("span", digits(values[index]), { class: "number" }));
    list.append(row);
  }
  box.append(element("h3", title), list);
  return box;
}

function draw(hovered = state.mask) {
  const context = canvas.getContext("2d"), { width, height } = canvas;
  context.drawImage(state.overlay ? overlay : photo, 0, 0, width, height);
  const scale = width / data.width;
  if (hovered !== null) drawMask(context, hovered, scale);
  for (const each of data.pins) drawCross(context, (each.x + 0.5) * scale, (each.y + 0.5) * scale, "#ffd400", 5);
  drawCross(context, (state.pixel.x + 0.5) * scale, (state.pixel.y + 0.5) * scale, "#fff", 11);
}

// What the mask covers keeps its colours, the rest is darkened.
function drawMask(context, mask, scale) {
  const shade = new ImageData(columns, rows);
  for (let place = 0; place < columns * rows; place++) {
    shade.data[4 * place + 3] = (205 * (255 - grid[mask * rows * columns + place])) / 255;
  }
  const small = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  small.getContext("2d").putImageData(shade, 0, 0);
  context.drawImage(small, 0, 0, columns * data.step * scale, rows * data.step * scale);
  const box = data.masks[mask].box;
  if (!box) return;
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.setLineDash([6, 4]);
  context.strokeRect(box[0] * scale, box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
  context.setLineDash([]);
}

function drawCross(context, x, y, colour, size) {
  for (const [style, line] of [["#000", 5], [colour, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(x - size, y);
    context.lineTo(x + size, y);
    context.moveTo(x, y - size);
    context.lineTo(x, y + size);
    context.stroke();
  }
}

function listen() {
  canvas.onclick = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * data.width;
    const y = ((event.clientY - box.top) / box.height) * data.height;
    choose(cell(Math.floor(x / data.step), Math.floor(y / data.step)));
  };
  canvas.onkeydown = (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const far = event.shiftKey ? 10 : 1, [across, down] = moves[event.key];
    choose(cell(state.pixel.column + far * across, state.pixel.row + far * down));
  };
  const toggle = () => {
    state.overlay = !state.overlay;
    byId("labels").setAttribute("aria-pressed", state.overlay);
    draw();
  };
  byId("labels").onclick = toggle;
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "l" && !event.ctrlKey && !event.metaKey && !event.altKey) toggle();
  });
  byId("more").onclick = () => {
    state.shown = data.masks.length;
    show();
  };
  for (const each of data.pins) {
    const button = element("button", `${each.x},${each.y}`, { title: "exact numbers" });
    button.onclick = () => choose(pin(each));
    byId("pins").append(button);
  }
}

async function start() {
  byId("about").textContent = `Model ${data.model}; masks that vote: ${data.masks.length}; ` +
    (data.classes.length < data.of ? `${data.classes.length} of ${data.of} classes matter here` : `${data.of} classes`) + ".";
  if (typeof DecompressionStream === "undefined") {
    byId("title").textContent = "This browser is too old for the page: use one of 2023 or later.";
    return;
  }
  let packed, places;
  [packed, places, photo, overlay] = await Promise.all(
    [unpacked(data.grid), unpacked(data.labels), loaded(data.photo), loaded(data.overlay)]);
  grid = new Uint8Array(packed);
  labels = new Int16Array(places);
  canvas.width = photo.naturalWidth;
  canvas.height = photo.naturalHeight;
  listen();
  choose(data.pins.length ? pin(data.pins[0]) : cell(columns >> 1, rows >> 1));
}

start();
