// The page: what is chosen on the right decides what is asked, and what is drawn.
import { element, Stage } from "./stage.js";

const byId = (id) => document.getElementById(id);
const page = `${Date.now().toString(36)}${Math.random().toString(36).slice(2)}`;
// Where sliders start: of objects, most are unlikely.
const LEAST = { semantic: 0, panoptic: 0, instances: 0.5 };
const PAUSE = 350; // ms without a key before names are asked for
// `given` is the source of `picture`, `source` the one that was chosen last.
const state = { models: [], source: null, given: null, picture: null, stages: [], active: null, asking: false, again: false, drawn: 0 };
const difference = { figure: element("figure"), title: element("b"), picture: element("img", null, { alt: "" }) };

class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function get(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Failure("the server does not answer: is it still running?", 0);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  throw new Failure(told.error, response.status);
}

const getJson = async (address, options) => (await get(address, options)).json();

function tell(message) {
  byId("error").hidden = !message;
  byId("error").textContent = message ?? "";
}

const chosen = (id) => state.models[byId(id).value];
const view = () => document.querySelector("[name=view]:checked").value;
const milliseconds = (value) => (value < 9.95 ? `${value.toFixed(1)} ms` : value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
const percent = (share) => (share >= 0.0995 ? `${Math.round(100 * share)} %` : share >= 0.00095 || share === 0 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %");

// Whether it worked. What fails is told in one line; what the server no longer keeps is given and asked again, once.
async function attempt(work, again = true) {
  try {
    tell(null);
    await work();
    return true;
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (again && failure.status === 410 && state.source) {
      return attempt(async () => {
        await upload();
        await askOnce();
      }, false);
    }
    tell(failure.message);
    return false;
  }
}

// Gives the picture that was chosen last; one that was chosen before it, and arrives after it, is left.
async function upload() {
  const { source } = state, { file, example } = source;
  const asked = new URLSearchParams({ page, ...(file ? { name: file.name } : { example }) });
  const options = { method: "POST", ...(file ? { body: file } : {}) };
  const given = await getJson(`api/pictures?${asked}`, options);
  if (source !== state.source) return;
  state.picture = given.picture;
  state.size = given;
  state.given = source;
}

async function choosePicture(source) {
  const given = await attempt(async () => {
    if (source.file && source.file.size > state.uploadBytes) {
      throw new Failure(`the picture has more than ${state.uploadBytes / 1e6} MB: make it smaller`, 400);
    }
    state.source = source;
    busy(true, "Reading the picture …");
    try {
      await upload();
    } catch (failure) {
      if (source === state.source) {
        state.source = state.given;
        busy(false, "");
      }
      throw failure;
    }
    if (source !== state.source) return;
    for (const button of byId("examples").children) {
      button.setAttribute("aria-pressed", Number(button.dataset.number) === source.example);
    }
    state.active = null;
    for (const stage of state.stages) Object.assign(stage, { pixel: null, answer: null, labels: null, instances: [] });
    forgetPixel();
  });
  if (given && source === state.source) await ask();
}

function busy(is, text) {
  for (const stage of state.stages) stage.box.setAttribute("aria-busy", is);
  if (text !== null) byId("status").textContent = text;
}

// One question at a time; what changed meanwhile is asked next.
async function ask() {
  if (!state.picture) return;
  if (state.asking) {
    state.again = true;
    return;
  }
  state.asking = true;
  try {
    do {
      state.again = false;
      await attempt(askOnce);
    } while (state.again);
  } finally {
    state.asking = false;
    busy(false, null);
  }
}

// What is answered of another picture than the one that is there by then is left; that one is asked next.
async function askOnce() {
  const { picture } = state;
  const names = byId("names").value, other = byId("other").checked;
  const models = [chosen("model")];
  if (byId("compared").value !== "") models.push(chosen("compared"));
  arrange(models);
  busy(true, "Asking …");
  const said = [];
  try {
    for (const [place, model] of models.entries()) {
      const question = { picture, model: model.name, precision: model.precision, names, other };
      const answer = await getJson("api/answers", { method: "POST", body: JSON.stringify(question) });
      const bytes = await (await get(`api/answers/${answer.answer}/hovered`)).arrayBuffer();
      if (picture !== state.picture) return;
      const stage = state.stages[place];
      stage.size(state.size.width, state.size.height);
      stage.colours = answer.colours;
      stage.know(answer.answer, answer.classes, bytes);
      stage.note.textContent = answer.engine;
      said.push(times(answer, models.length > 1 ? `${title(model)}: ` : ""));
      if (answer.remark) said.push([`Note: ${answer.remark}`]);
    }
  } catch (failure) {
    busy(false, "");
    throw failure;
  }
  byId("status").replaceChildren(...said.map((parts) => {
    const line = element("div");
    line.append(...parts.map((part) => element("span", part)));
    return line;
  }));
  state.active ??= state.stages[0];
  await draw();
  if (picture !== state.picture || !state.active) return;
  if (models.length > 1) await compare();
  if (state.active?.pixel) await explain(state.active, state.active.pixel);
}

function times(answer, prefix) {
  const regions = `${answer.regions} region${answer.regions === 1 ? "" : "s"}`;
  const found = answer.reused ? `${regions} kept, not searched again` : `finding ${regions}: ${milliseconds(answer.regions_ms)}`;
  const opening = answer.opening_ms > 100 ? [`opening the model: ${milliseconds(answer.opening_ms)}`] : [];
  return [prefix + found, `naming them: ${milliseconds(answer.names_ms)}`, ...opening];
}

const title = (model) => `${model.name} · ${model.precision}`;

function arrange(models) {
  while (state.stages.length < models.length) state.stages.push(new Stage((stage, pixel) => attempt(() => explain(stage, pixel))));
  state.stages.length = models.length;
  if (!state.stages.includes(state.active)) state.active = null;
  for (const [place, stage] of state.stages.entries()) {
    stage.title.textContent = title(models[place]);
    stage.describe(`Answer of ${title(models[place])}.`);
  }
  const figures = state.stages.map((stage) => stage.figure);
  const wanted = models.length > 1 ? [...figures, difference.figure] : figures;
  const shown = [...byId("stages").children];
  if (wanted.length !== shown.length || wanted.some((figure, place) => figure !== shown[place])) {
    byId("stages").replaceChildren(...wanted);
  }
}

function wanted() {
  return new URLSearchParams({ view: view(), min_score: byId("min-score").value, opacity: byId("opacity").value });
}

// Draws every answer anew; nothing is segmented again.
async function draw() {
  const turn = ++state.drawn, asked = wanted(), least = Number(byId("min-score").value);
  for (const stage of state.stages) {
    if (!stage.answer) continue;
    const drawn = await getJson(`api/answers/${stage.answer}/view?${asked}`);
    if (turn !== state.drawn || !stage.answer) return;
    stage.minScore = least;
    stage.picture.src = drawn.picture;
    stage.segments = drawn.segments;
    stage.picture.alt = `Found: ${drawn.segments.map((segment) => segment.name).join(", ") || "nothing"}`;
    stage.mark(drawn.segments.filter((segment) => segment.box));
    stage.read(stage.pixel);
  }
  if (!state.active) return;
  list();
  link();
}

function list() {
  const segments = state.active?.segments ?? [];
  byId("count").textContent = segments.length ? "share and score" : "nothing above this score";
  byId("segments").replaceChildren(...segments.map((segment) => {
    const row = element("li");
    row.append(swatch(segment.colour), element("span", segment.name, { title: segment.name }));
    row.append(element("span", percent(segment.share), { class: "number" }), number(segment.score));
    return row;
  }));
}

function swatch(colour) {
  const made = element("span", null, { class: "swatch" });
  made.style.background = colour;
  return made;
}

const number = (value) => element("span", value.toFixed(2), { class: "number" });

function link() {
  const stage = state.active, asked = wanted();
  const stem = (state.source.file?.name ?? state.examples[state.source.example].name).replace(/\.[^.]*$/, "");
  for (const anchor of document.querySelectorAll("[data-file]")) {
    anchor.href = `api/answers/${stage.answer}/file/${anchor.dataset.file}?${asked}`;
    anchor.download = `${stem}_${anchor.dataset.file}`;
  }
}

async function compare() {
  const [one, other] = state.stages.map((stage) => stage.answer);
  const found = await getJson(`api/disagreement?${new URLSearchParams({ one, other })}`);
  difference.picture.src = found.picture;
  difference.title.textContent = `Disagreement: ${(100 * found.share).toFixed(3)} %`;
  difference.picture.alt = `Pixels whose class differs, in red: ${(100 * found.share).toFixed(3)} percent`;
  difference.box.style.aspectRatio = `${state.size.width} / ${state.size.height}`;
}

function forgetPixel() {
  byId("why").replaceChildren(element("p", "Click a pixel, or give the picture the focus, move with the arrow keys, ten pixels with Shift, and press Enter.", { class: "faint" }));
}

async function explain(stage, pixel) {
  for (const other of state.stages) if (other !== stage) other.point(null);
  if (stage !== state.active) {
    state.active = stage;
    list();
    link();
  }
  stage.region(null);
  const { answer } = stage;
  const found = await getJson(`api/answers/${answer}/pixel?${new URLSearchParams(pixel)}`);
  if (answer !== stage.answer) return;
  const head = element("b", `${found.label ?? "no class"} at ${found.x}, ${found.y}`);
  const scores = element("ol", null, { class: "scores", "aria-label": "Scores" });
  for (const rating of found.scores) {
    const row = element("li");
    row.append(swatch(stage.colours[stage.classes.indexOf(rating.name)]), element("span", rating.name), number(rating.value));
    scores.append(row);
  }
  const about = element("p", `Regions that voted for ${found.explained.name}, the score being the sum of their votes:`, { class: "faint" });
  about.style.marginTop = ".5rem";
  const cards = found.votes.filter((vote) => vote.votes >= 0.0005).map((vote) => card(stage, vote, found.explained.value));
  byId("why").replaceChildren(head, scores, about, ...cards);
}

function card(stage, vote, score) {
  const made = element("button", null, { class: "region-card", type: "button", "aria-pressed": "false" });
  const top = element("span", null, { class: "top" });
  top.append(element("span", `Region ${vote.mask}, weight ${vote.weight.toFixed(2)}`), element("b", `${vote.votes.toFixed(3)} votes`));
  const meter = element("span", null, { class: "meter" }), filled = element("i");
  filled.style.width = `${score > 0 ? Math.min(100, (100 * vote.votes) / score) : 0}%`;
  meter.append(filled);
  const sides = element("span", null, { class: "sides" });
  for (const [name, ratings] of [["By query", vote.query], ["By CLIP", vote.clip]]) {
    if (!ratings.length) continue;
    const side = element("span"), ratingList = element("ol");
    for (const rating of ratings.slice(0, 3)) {
      const row = element("li");
      row.append(element("span", rating.name), number(rating.value));
      ratingList.append(row);
    }
    side.append(element("small", name), ratingList);
    sides.append(side);
  }
  made.append(top, meter, sides);
  const pressed = () => made.getAttribute("aria-pressed") === "true";
  const held = () => document.querySelector(".region-card[aria-pressed=true]");
  made.onmouseenter = () => stage.region(vote);
  made.onmouseleave = () => (held() ? held().onmouseenter() : stage.region(null));
  made.onclick = () => {
    const was = pressed();
    for (const other of document.querySelectorAll(".region-card")) other.setAttribute("aria-pressed", "false");
    made.setAttribute("aria-pressed", !was);
    stage.region(was ? null : vote);
  };
  return made;
}

function showSliders() {
  for (const id of ["opacity", "min-score"]) byId(`${id}-value`).textContent = Number(byId(id).value).toFixed(2);
}

function later(work, pause) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, pause);
  };
}

function listen() {
  byId("file").onchange = () => {
    const [file] = byId("file").files;
    byId("file").value = "";
    if (file) choosePicture({ file });
  };
  document.ondragover = (event) => {
    event.preventDefault();
    byId("stages").classList.add("dropping");
  };
  document.ondragleave = (event) => event.relatedTarget === null && byId("stages").classList.remove("dropping");
  document.ondrop = (event) => {
    event.preventDefault();
    byId("stages").classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) choosePicture({ file });
  };
  document.onpaste = (event) => {
    const [file] = event.clipboardData.files;
    if (file) choosePicture({ file });
  };
  byId("names").oninput = later(ask, PAUSE);
  for (const id of ["other", "model", "compared"]) byId(id).onchange = ask;
  const redraw = later(() => attempt(draw), 40);
  for (const id of ["opacity", "min-score"]) {
    byId(id).oninput = () => {
      showSliders();
      redraw();
    };
  }
  byId("views").onchange = () => {
    byId("min-score").value = LEAST[view()];
    showSliders();
    attempt(draw);
  };
}

async function start() {
  const told = await getJson("api/start");
  state.examples = told.examples;
  state.uploadBytes = told.upload_bytes;
  state.models = told.models.flatMap(({ name, precisions }) => precisions.map((precision) => ({ name, precision })));
  byId("compared").append(element("option", "nothing", { value: "" }));
  for (const [place, model] of state.models.entries()) {
    for (const id of ["model", "compared"]) byId(id).append(element("option", title(model), { value: place }));
  }
  for (const [place, example] of told.examples.entries()) {
    const button = element("button", null, { type: "button", "aria-pressed": "false", title: example.name, "data-number": place });
    button.append(element("img", null, { src: example.address, alt: `Example: ${example.name}` }));
    button.onclick = () => {
      byId("names").value = example.classes;
      choosePicture({ example: place });
    };
    byId("examples").append(button);
  }
  const caption = element("figcaption");
  caption.append(difference.title, element("span", "red: another class"));
  difference.box = element("div", null, { class: "stage" });
  difference.box.append(difference.picture);
  difference.figure.append(caption, difference.box);
  showSliders();
  listen();
  if (told.examples.length) byId("examples").firstChild.click();
}

attempt(start);
