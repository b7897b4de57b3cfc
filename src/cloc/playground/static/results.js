// What models answered, as elements. Text comes from the web and from models: it is set as text, never as markup.

import { color } from "./board.js";

const SHOWN = 8; // labels of a ranking that are not folded

// An element: element("p", {class: "soft"}, "text", child, ...).
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A box over a picture.
function mark([x1, y1, x2, y2], kind = "") {
  const made = element("span", { class: `mark ${kind}` });
  Object.assign(made.style, { left: `${100 * x1}%`, top: `${100 * y1}%`, width: `${100 * (x2 - x1)}%`, height: `${100 * (y2 - y1)}%` });
  return made;
}

// The rankings of regions, each beside what was read of the picture.
export function rankings(answer, picture) {
  return answer.regions.map((region, number) => {
    const cut = element("div", { class: "cut" }, cutOut(picture, region.box), tag(number));
    const [first, rest] = [region.ranking.slice(0, SHOWN), region.ranking.slice(SHOWN)];
    const list = element("div", {}, element("ol", { class: "ranking" }, ...first.map(label)));
    if (rest.length) list.append(element("details", {}, element("summary", {}, `${rest.length} more`), element("ol", { class: "ranking" }, ...rest.map(label))));
    return element("div", { class: "region", "aria-label": `Region ${number + 1}` }, cut, list);
  });
}

export function tag(number) {
  const made = element("span", { class: "tag" }, String(number + 1));
  made.style.background = color(number);
  return made;
}

function label({ label: text, score, cosine }) {
  const fill = element("span", { class: "fill" });
  fill.style.setProperty("--share", `${100 * score}%`);
  const cells = [element("span", { class: "untrusted" }, text), element("span", { class: "score" }, percent(score)), element("span", { class: "cosine", title: "cosine" }, cosine.toFixed(3))];
  return element("li", {}, fill, ...cells);
}

const percent = (score) => (score >= 0.995 ? "100 %" : `${(100 * score).toFixed(score < 0.0995 ? 1 : 0)} %`);

function cutOut(picture, [x1, y1, x2, y2]) {
  const side = 128;
  const made = element("canvas", { width: side, height: side, "aria-hidden": "true" });
  const [width, height] = [(x2 - x1) * picture.naturalWidth, (y2 - y1) * picture.naturalHeight];
  const scale = side / Math.max(width, height, 1);
  const [across, down] = [width * scale, height * scale];
  made.getContext("2d").drawImage(picture, x1 * picture.naturalWidth, y1 * picture.naturalHeight, width, height, (side - across) / 2, (side - down) / 2, across, down);
  return made;
}

// The heat map of a phrase, the model's box where it draws one, and the key of the colours.
export function found(answer, phrase, colors) {
  const shot = element("div", { class: "heat" }, element("img", { src: answer.picture, alt: `Heat map of “${phrase}” by ${answer.model}` }));
  if (answer.box) shot.append(mark(answer.box, "found"));
  const peak = element("span", { class: "peak" });
  Object.assign(peak.style, { left: `${100 * answer.peak[0]}%`, top: `${100 * answer.peak[1]}%` });
  shot.append(peak);
  const ramp = element("i");
  ramp.style.background = `linear-gradient(to right, ${colors.join(", ")})`;
  const scale = element("div", { class: "scale" }, element("span", {}, `cosine ${answer.low.toFixed(3)}`), ramp, element("span", {}, answer.high.toFixed(3)));
  const says = answer.box
    ? `Green: the model's box, ${answer.box.map((side) => side.toFixed(2)).join(", ")}. Dot: the place most like the phrase.`
    : "No box: this model was not trained to find one. Dot: the place most like the phrase.";
  return [shot, scale, element("p", { class: "soft small found-says" }, says)];
}

export const isWhole = ([x1, y1, x2, y2]) => x1 === 0 && y1 === 0 && x2 === 1 && y2 === 1;

// Regions of the data that were found; a click takes the picture.
export function hits(answer, take) {
  if (!answer.results.length) return [element("p", { class: "soft" }, "Nothing was found.")];
  const grid = element("div", { class: "hits" });
  for (const hit of answer.results) {
    const shot = element("span", { class: "shot" }, element("img", { src: `/api/samples/${hit.sample}/thumbnail`, alt: "", loading: "lazy" }), mark(hit.box));
    const says = element("span", { class: "says" }, element("span", { class: "untrusted" }, hit.text || (isWhole(hit.box) ? "the whole picture" : " ")), element("span", { class: "score" }, hit.score.toFixed(3)));
    const button = element("button", { type: "button", "aria-label": `Take picture ${hit.sample}${hit.text ? `, ${hit.text}` : ""}, cosine ${hit.score.toFixed(3)}` }, shot, says);
    button.addEventListener("click", () => take(hit));
    grid.append(button);
  }
  return [grid];
}
