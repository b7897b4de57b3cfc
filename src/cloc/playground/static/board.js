// The picture with its regions: drawn with mouse, pen, finger or keys. Regions are {box: [x1, y1, x2, y2]} or
// {point: [x, y]} in shares of the picture, as the API takes them.

export const COLORS = ["#0090d4", "#e69f00", "#00a878", "#cc79a7", "#8e6fd8", "#b8ad00", "#56b4e9", "#d55e00", "#7a8b99", "#3d9a50"];
const HANDLE = 9; // pixels around a corner that take hold of it
const SMALLEST = 0.01; // of a drawn box; a smaller drag is a click
const STEP = 0.01; // of an arrow key
const TALLEST = 0.55; // share of the window's height that the picture takes
const LARGEST = 8; // times that a small picture is enlarged

export const color = (number) => COLORS[number % COLORS.length];
const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));
const sorted = ([x1, y1, x2, y2]) => [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];

export class Board {
  // `changed` is called when regions or the selection change; its argument tells whether a region did.
  constructor(canvas, changed, most) {
    this.canvas = canvas;
    this.changed = changed;
    this.most = most;
    this.regions = [];
    this.selected = -1;
    this.tool = "box";
    this.picture = null;
    this.drag = null;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", () => this.#cancel());
    canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#fit()).observe(canvas.parentElement);
    window.addEventListener("resize", () => this.#fit());
  }

  show(picture) {
    this.picture = picture;
    this.regions = [];
    this.selected = -1;
    this.#fit();
    this.changed(true);
  }

  add(region) {
    if (this.regions.length >= this.most) return;
    this.regions.push(region);
    this.select(this.regions.length - 1, true);
  }

  select(number, changed = false) {
    this.selected = number;
    this.draw();
    this.changed(changed);
  }

  remove() {
    if (this.selected < 0) return;
    this.regions.splice(this.selected, 1);
    this.select(Math.min(this.selected, this.regions.length - 1), true);
  }

  clear() {
    this.regions = [];
    this.select(-1, true);
  }

  draw() {
    if (!this.picture) return;
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    context.drawImage(this.picture, 0, 0, width, height);
    const scale = window.devicePixelRatio || 1;
    this.regions.forEach((region, number) => this.#drawRegion(context, region, number, scale));
    if (this.drag?.kind === "draw") this.#drawRegion(context, { box: sorted(this.drag.box) }, this.regions.length, scale);
  }

  #drawRegion(context, region, number, scale) {
    const { width, height } = this.canvas;
    const chosen = number === this.selected;
    const line = (chosen ? 3 : 2) * scale;
    context.save();
    let corner;
    if (region.box) {
      const [x1, y1, x2, y2] = region.box;
      const place = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height];
      context.lineWidth = line + 2 * scale;
      context.strokeStyle = "rgba(0,0,0,.55)";
      context.strokeRect(...place);
      context.lineWidth = line;
      context.strokeStyle = color(number);
      context.strokeRect(...place);
      corner = [place[0], place[1]];
      if (chosen) {
        context.fillStyle = "#fff";
        for (const x of [x1, x2]) for (const y of [y1, y2]) {
          context.fillRect(x * width - 4 * scale, y * height - 4 * scale, 8 * scale, 8 * scale);
          context.lineWidth = scale;
          context.strokeRect(x * width - 4 * scale, y * height - 4 * scale, 8 * scale, 8 * scale);
        }
      }
    } else {
      const [x, y] = [region.point[0] * width, region.point[1] * height];
      context.beginPath();
      context.arc(x, y, (chosen ? 8 : 6) * scale, 0, 2 * Math.PI);
      context.fillStyle = color(number);
      context.fill();
      context.lineWidth = 2 * scale;
      context.strokeStyle = "#fff";
      context.stroke();
      corner = [x + 8 * scale, y - 8 * scale];
    }
    const tag = String(number + 1);
    context.font = `600 ${13 * scale}px system-ui, sans-serif`;
    const side = context.measureText(tag).width + 10 * scale;
    const top = corner[1] >= 20 * scale ? corner[1] - 20 * scale : corner[1];
    context.fillStyle = color(number);
    context.fillRect(clamp(corner[0], 0, width - side), top, side, 20 * scale);
    context.fillStyle = "#fff";
    context.fillText(tag, clamp(corner[0], 0, width - side) + 5 * scale, top + 15 * scale);
    context.restore();
  }

  #fit() {
    if (!this.picture) return;
    const room = this.canvas.parentElement.clientWidth;
    const { naturalWidth, naturalHeight } = this.picture;
    const scale = Math.min(room / naturalWidth, (TALLEST * window.innerHeight) / naturalHeight, LARGEST);
    const [width, height] = [naturalWidth * scale, naturalHeight * scale];
    const dense = window.devicePixelRatio || 1;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    this.draw();
  }

  #place(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [clamp((event.clientX - frame.left) / frame.width), clamp((event.clientY - frame.top) / frame.height)];
  }

  #down(event) {
    if (!this.picture || event.button > 0 || !event.isPrimary) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    const [x, y] = this.#place(event);
    const chosen = this.regions[this.selected];
    const corner = chosen?.box && this.#corner(chosen.box, x, y);
    if (corner) this.drag = { kind: "resize", corner };
    else if (chosen && this.#inside(chosen, x, y)) this.drag = { kind: "move", from: [x, y], region: structuredClone(chosen) };
    else this.drag = { kind: "draw", box: [x, y, x, y] };
    this.drag.started = [x, y];
  }

  #move(event) {
    if (!this.drag) return;
    const [x, y] = this.#place(event);
    const { drag } = this;
    if (drag.kind === "draw") {
      if (this.tool === "box") drag.box = [...drag.box.slice(0, 2), x, y];
    } else if (drag.kind === "resize") {
      const box = [...this.regions[this.selected].box];
      box[drag.corner[0]] = x;
      box[drag.corner[1]] = y;
      this.#set(box, drag);
    } else {
      this.regions[this.selected] = moved(drag.region, x - drag.from[0], y - drag.from[1]);
    }
    this.draw();
  }

  #up(event) {
    if (!this.drag) return;
    const { drag } = this;
    const [x, y] = this.#place(event);
    this.drag = null;
    if (drag.kind !== "draw") {
      if (Math.hypot(x - drag.started[0], y - drag.started[1]) > 0) this.changed(true);
      this.draw();
      return;
    }
    const box = sorted(drag.box);
    const drawn = Math.min(box[2] - box[0], box[3] - box[1]) >= SMALLEST;
    if (drawn) this.add({ box });
    else if (this.tool === "point") this.add({ point: [x, y] });
    else this.select(this.regions.findLastIndex((region) => this.#inside(region, x, y)));
  }

  #cancel() {
    this.drag = null;
    this.draw();
  }

  // Takes a corner that is dragged over the opposite one along.
  #set(box, drag) {
    const [a, b] = drag.corner;
    if (box[0] > box[2]) { [box[0], box[2]] = [box[2], box[0]]; drag.corner = [2 - a, b]; }
    if (box[1] > box[3]) { [box[1], box[3]] = [box[3], box[1]]; drag.corner = [drag.corner[0], 4 - b]; }
    box[2] = Math.max(box[2], box[0] + 0.001);
    box[3] = Math.max(box[3], box[1] + 0.001);
    this.regions[this.selected] = { box: box.map((side) => clamp(side)) };
  }

  #corner([x1, y1, x2, y2], x, y) {
    const { clientWidth, clientHeight } = this.canvas;
    for (const [across, sideX] of [[0, x1], [2, x2]]) for (const [down, sideY] of [[1, y1], [3, y2]])
      if (Math.abs(x - sideX) * clientWidth <= HANDLE && Math.abs(y - sideY) * clientHeight <= HANDLE) return [across, down];
    return null;
  }

  #inside(region, x, y) {
    if (region.box) return x >= region.box[0] && x <= region.box[2] && y >= region.box[1] && y <= region.box[3];
    const { clientWidth, clientHeight } = this.canvas;
    return Math.hypot((x - region.point[0]) * clientWidth, (y - region.point[1]) * clientHeight) <= HANDLE;
  }

  #key(event) {
    const steps = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    const region = this.regions[this.selected];
    if (event.key === "Delete" || event.key === "Backspace") this.remove();
    else if (event.key === "Escape") this.select(-1);
    else if (region && event.key in steps) {
      const [x, y] = steps[event.key];
      if (event.shiftKey && region.box) {
        const [x1, y1, x2, y2] = region.box;
        region.box = [x1, y1, clamp(x2 + x, x1 + STEP), clamp(y2 + y, y1 + STEP)];
      } else this.regions[this.selected] = moved(region, x, y);
      this.draw();
      this.changed(true);
    } else return;
    event.preventDefault();
  }
}

// A region that was moved and still lies in the picture.
function moved(region, x, y) {
  if (region.point) return { point: [clamp(region.point[0] + x), clamp(region.point[1] + y)] };
  const [x1, y1, x2, y2] = region.box;
  const [right, down] = [clamp(x, -x1, 1 - x2), clamp(y, -y1, 1 - y2)];
  return { box: [x1 + right, y1 + down, x2 + right, y2 + down].map((side) => clamp(side)) };
}
