// The page: what is shown, what is asked, and what came back.

import { Board } from "./board.js";
import { element, found, hits, isWhole, rankings, tag } from "./results.js";

const $ = (id) => document.getElementById(id);
const page = $("page");
const READERS = JSON.parse(page.dataset.readers);
const LEGEND = JSON.parse(page.dataset.legend);
const TABS = ["name", "find", "search"];
const TYPING = 450; // milliseconds without a key before what is typed is asked
const RETRIES = 4;
const STRIP = 24; // samples shown at a time
const MOST_REGIONS = Number(page.dataset.regions);
const MOST_MIB = Number(page.dataset.fileMib);

const state = { models: [], tab: "name", image: null, source: null, shown: null, asked: null, first: 0, total: 0, sample: -1, readers: { name: {}, find: {} } };
const board = new Board($("board"), regionsChanged, MOST_REGIONS);

// Requests

class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  for (let tries = 0; ; tries++) {
    const response = await fetch(path, options);
    if (response.status === 503 && tries < RETRIES && !path.endsWith("/search")) {
      await new Promise((done) => setTimeout(done, 1000 * Number(response.headers.get("retry-after") || 1)));
      continue;
    }
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw new Failure(body.error || `the server answered ${response.status}`, response.status);
    return body;
  }
}

const post = (path, body, signal) =>
  call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

function tell(error) {
  if (error?.name === "AbortError") return;
  $("problem").textContent = error ? (error instanceof TypeError ? "The server does not answer; is it still running?" : error.message) : "";
  $("problem").hidden = !error;
}

// Pictures

async function send(source) {
  const added = source.sample === undefined
    ? await call("/api/images", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: source.file })
    : await call(`/api/samples/${source.sample}`, { method: "POST" });
  state.image = added.image;
  return added;
}

async function take(source, caption = "", region = null) {
  tell(null);
  $("status").textContent = "Reading the picture…";
  try {
    const added = await send(source);
    const picture = new Image();
    picture.src = `/api/images/${added.image}`;
    await picture.decode();
    state.source = source;
    state.sample = source.sample ?? -1;
    $("drop").classList.remove("empty");
    $("drop").querySelector(".invite").hidden = true;
    $("board").hidden = false;
    $("tools").hidden = false;
    $("picture-size").textContent = `${added.width} × ${added.height}`;
    $("caption").textContent = caption;
    $("caption").hidden = !caption;
    for (const button of $("samples").children) button.setAttribute("aria-pressed", String(Number(button.dataset.sample) === state.sample));
    $("status").textContent = "";
    board.show(picture);
    if (region) board.add(region);
    if (state.tab === "find") ask();
  } catch (error) {
    $("status").textContent = "";
    tell(error);
  }
}

function openFile(file) {
  if (!file) return;
  if (file.size > MOST_MIB * 2 ** 20) tell(new Failure(`${file.name}: larger than ${MOST_MIB} MiB`));
  else take({ file });
}

$("file").addEventListener("change", (event) => {
  openFile(event.target.files[0]);
  event.target.value = "";
});
for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  openFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => openFile([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));

async function listSamples(first) {
  const { total, samples } = await call(`/api/samples?first=${first}&count=${STRIP}`);
  Object.assign(state, { first, total });
  $("samples-box").hidden = !total;
  $("samples-count").textContent = total ? `${first + 1}–${first + samples.length} of ${total.toLocaleString("en")}` : "";
  $("samples-back").disabled = first === 0;
  $("samples-on").disabled = first + samples.length >= total;
  $("samples").replaceChildren(...samples.map(({ sample, key, caption }) => {
    const image = element("img", { src: `/api/samples/${sample}/thumbnail`, alt: caption || key, loading: "lazy" });
    const button = element("button", { type: "button", "data-sample": sample, "aria-pressed": String(sample === state.sample), title: caption || key }, image);
    button.addEventListener("click", () => take({ sample }, caption));
    return button;
  }));
}

$("samples-back").addEventListener("click", () => listSamples(Math.max(0, state.first - STRIP)).catch(tell));
$("samples-on").addEventListener("click", () => listSamples(state.first + STRIP).catch(tell));

// Regions

function regionsChanged(changed) {
  $("regions").replaceChildren(...board.regions.map((region, number) => {
    const says = (region.box || region.point).map((side) => side.toFixed(2)).join(" ");
    const button = element("button", { type: "button", "aria-pressed": String(number === board.selected), "aria-label": `${region.box ? "Box" : "Point"} ${number + 1}: ${says}` }, tag(number), says);
    button.addEventListener("click", () => {
      board.select(number);
      $("board").focus();
    });
    return element("li", {}, button);
  }));
  $("delete").disabled = board.selected < 0;
  $("clear").disabled = !board.regions.length;
  $("alike").disabled = board.selected < 0;
  if (changed && state.tab === "name") askSoon();
}

function useTool(tool) {
  board.tool = tool;
  for (const name of ["box", "point"]) $(`tool-${name}`).setAttribute("aria-pressed", String(name === tool));
}

$("tool-box").addEventListener("click", () => useTool("box"));
$("tool-point").addEventListener("click", () => useTool("point"));
$("add").addEventListener("click", () => {
  board.add(board.tool === "box" ? { box: [0.3, 0.3, 0.7, 0.7] } : { point: [0.5, 0.5] });
  $("board").focus();
});
$("delete").addEventListener("click", () => board.remove());
$("clear").addEventListener("click", () => board.clear());

// Questions

function showTab(tab) {
  state.tab = tab;
  for (const name of TABS) {
    $(`tab-${name}`).setAttribute("aria-selected", String(name === tab));
    $(`tab-${name}`).tabIndex = name === tab ? 0 : -1;
    $(`panel-${name}`).hidden = name !== tab;
  }
  showColumns();
  if (tab === "name") ask();
}

TABS.forEach((tab, number) => {
  $(`tab-${tab}`).addEventListener("click", () => showTab(tab));
  $(`tab-${tab}`).addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = TABS[(number + step + TABS.length) % TABS.length];
    showTab(next);
    $(`tab-${next}`).focus();
  });
  $(`panel-${tab}`).addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
});
$("labels").addEventListener("input", () => askSoon());
$("alike").addEventListener("click", () => ask(board.regions[board.selected]));

const labels = () => [...new Set($("labels").value.split(/[\n,]/).map((text) => text.trim()).filter(Boolean))];

let timer = 0;
function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => ask(), TYPING);
}

// One column a model, empty.
function showColumns() {
  $("results").style.setProperty("--models", state.models.length);
  $("results").replaceChildren(...state.models.map((model) => {
    const head = element("div", { class: "bar-row" }, element("h2", { class: "untrusted", title: model.source }, model.name));
    if (state.tab !== "search") head.append(readerSelect(model));
    return element("section", { class: "card model", "data-model": model.name, "aria-label": model.name, hidden: "" }, head, element("div", { class: "answer", "aria-live": "polite" }));
  }));
}

function readerSelect(model) {
  const chosen = state.readers[state.tab][model.name] || (state.tab === "name" ? model.reader : model.dense_reader);
  const select = element("select", { "aria-label": `How ${model.name} reads regions` });
  for (const reader of model.readers) select.append(new Option(READERS[reader] || reader, reader, false, reader === chosen));
  const tab = state.tab;
  select.addEventListener("change", () => {
    state.readers[tab][model.name] = select.value;
    ask();
  });
  return select;
}

// What the open tab asks of a model: a path, a body, and how the answer is shown; null when something is missing.
function question(region) {
  const { tab, image } = state;
  if (tab === "search") {
    const text = $("query").value.trim();
    const body = region ? { image, region } : { text };
    return region || text ? { path: "/api/search", body, show: (answer) => hits(answer, pickHit) } : null;
  }
  if (!image) return null;
  if (tab === "name") {
    const body = { image, regions: structuredClone(board.regions), labels: labels() };
    const { picture } = board;
    return body.regions.length && body.labels.length ? { path: "/api/classify", body, show: (answer) => rankings(answer, picture) } : null;
  }
  const phrase = $("phrase").value.trim();
  return phrase ? { path: "/api/find", body: { image, phrase }, show: (answer) => found(answer, phrase, LEGEND) } : null;
}

async function ask(region = null) {
  clearTimeout(timer);
  state.asked?.abort();
  const asked = question(region);
  const columns = [...$("results").children];
  if (!asked) {
    for (const column of columns) column.hidden = true;
    $("status").textContent = state.tab !== "search" && !state.image ? "Open a picture first." : "";
    return;
  }
  tell(null);
  const own = (state.asked = new AbortController());
  const started = performance.now();
  $("status").textContent = "Asking…";
  const answers = await Promise.allSettled(columns.map((column, number) => answer(column, state.models[number], asked, own.signal)));
  if (own.signal.aborted) return;
  const failed = answers.find((item) => item.status === "rejected");
  $("status").textContent = failed ? "" : `Answered in ${((performance.now() - started) / 1000).toFixed(2)} s.`;
  if (failed) tell(failed.reason);
}

async function answer(column, model, asked, signal) {
  column.classList.add("waits");
  const body = { model: model.name, ...asked.body };
  const reader = state.readers[state.tab]?.[model.name];
  if (reader) body.reader = reader;
  try {
    const given = await postAgain(asked.path, body, signal);
    if (signal.aborted) return;
    column.hidden = false;
    column.querySelector(".answer").replaceChildren(...asked.show(given));
  } finally {
    column.classList.remove("waits");
  }
}

// A picture that the server has let go of meanwhile is sent once more.
async function postAgain(path, body, signal) {
  try {
    return await post(path, body, signal);
  } catch (error) {
    if (error.status !== 404 || !body.image || !state.source) throw error;
    await send(state.source);
    return post(path, { ...body, image: state.image }, signal);
  }
}

function pickHit(hit) {
  take({ sample: hit.sample }, hit.text, isWhole(hit.box) ? null : { box: hit.box });
  $("picture-title").scrollIntoView({ block: "nearest" });
}

// The server

async function refresh() {
  const { models, data } = await call("/api/state");
  const first = !state.models.length;
  state.models = models;
  if (first) showTab("name");
  if (!data) {
    $("progress").replaceChildren(element("p", { class: "soft small" }, "Started without --data: there is nothing to search."));
    return;
  }
  if (state.total < data.images) await listSamples(state.first);
  const open = models.filter((model) => !model.searchable);
  $("progress").replaceChildren(...(data.failure ? [element("p", { class: "problem" }, `No index: ${data.failure}`)] : open.map((model) =>
    element("div", { class: "progress" }, element("span", { class: "untrusted" }, model.name), element("progress", { max: data.images, value: model.indexed, "aria-label": `Index of ${model.name}` }), element("span", { class: "soft" }, `${model.indexed} of ${data.images} images`)))));
  if (!open.length) $("progress").replaceChildren(element("p", { class: "soft small" }, `${data.images.toLocaleString("en")} of ${data.total.toLocaleString("en")} images of ${data.name}, region by region.`));
  if (open.length && !data.failure) setTimeout(() => refresh().catch(tell), 1000);
}

refresh().catch(tell);
