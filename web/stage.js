// A picture with what was found in it: what lies under the pointer, and the place that is asked about.
const SVG = "http://www.w3.org/2000/svg";

export function element(tag, text = null, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export class Stage {
  // `asked` is called with the stage and the pixel that was chosen.
  constructor(asked) {
    this.asked = asked;
    this.answer = this.labels = this.pixel = null;
    this.minScore = 0;
    this.title = element("b");
    this.note = element("span");
    this.box = element("div", null, { class: "stage", tabindex: 0, role: "application" });
    this.picture = element("img", null, { alt: "", class: "overlay" });
    this.shade = element("img", null, { alt: "", hidden: "" });
    this.marks = document.createElementNS(SVG, "svg");
    this.marks.setAttribute("preserveAspectRatio", "none");
    this.marks.setAttribute("aria-hidden", "true");
    this.reading = element("p", null, { class: "reading" });
    this.box.append(this.picture, this.shade, this.marks);
    this.figure = element("figure");
    const caption = element("figcaption");
    caption.append(this.title, this.note);
    this.figure.append(caption, this.box, this.reading);
    this.box.onpointermove = (event) => this.read(this.under(event));
    this.box.onpointerleave = () => this.read(this.pixel);
    this.box.onclick = (event) => this.answer && this.choose(this.under(event));
    this.box.onkeydown = (event) => this.move(event);
  }

  size(width, height) {
    Object.assign(this, { width, height });
    this.box.style.aspectRatio = `${width} / ${height}`;
    this.box.style.maxWidth = `calc(78vh * ${width / height})`;
    this.marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  // What the server says of every pixel: `bytes` are int16 labels, then uint8 scores.
  know(answer, classes, bytes) {
    const count = this.width * this.height;
    this.answer = answer;
    this.classes = classes;
    this.labels = new Int16Array(bytes, 0, count);
    this.scores = new Uint8Array(bytes, 2 * count, count);
    this.shade.hidden = true;
    this.read(this.pixel);
  }

  describe(what) {
    this.box.setAttribute("aria-label", `${what} Arrow keys move, ten pixels with Shift; Enter explains the pixel.`);
  }

  under(event) {
    const box = this.box.getBoundingClientRect();
    return this.inside(
      Math.floor(((event.clientX - box.left) / box.width) * this.width),
      Math.floor(((event.clientY - box.top) / box.height) * this.height));
  }

  inside(x, y) {
    return { x: Math.min(Math.max(x, 0), this.width - 1), y: Math.min(Math.max(y, 0), this.height - 1) };
  }

  read(pixel) {
    if (!this.labels || !pixel) {
      this.reading.textContent = "";
      return;
    }
    const place = pixel.y * this.width + pixel.x, score = this.scores[place] / 255;
    const label = score < this.minScore ? -1 : this.labels[place];
    const name = label < 0 ? "no class" : this.classes[label];
    this.reading.textContent = `${pixel.x}, ${pixel.y}: ${name}, score ${score >= 1 ? "1 or more" : score.toFixed(2)}`;
  }

  choose(pixel) {
    this.point(pixel);
    this.asked(this, pixel);
  }

  point(pixel) {
    this.pixel = pixel;
    this.read(pixel);
    this.mark();
  }

  move(event) {
    if (!this.answer) return;
    if (event.key === "Enter" && this.pixel) this.asked(this, this.pixel);
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const far = event.shiftKey ? 10 : 1, [across, down] = moves[event.key];
    const from = this.pixel ?? { x: this.width >> 1, y: this.height >> 1 };
    this.point(this.inside(from.x + far * across, from.y + far * down));
  }

  // Boxes of instances, of the region that is looked at, and the cross.
  mark(instances = this.instances ?? [], region = null) {
    this.instances = instances;
    const made = instances.map(({ box, colour }) => this.rectangle(box, { stroke: colour }));
    if (region) made.push(this.rectangle(region, { class: "region" }));
    if (this.pixel) {
      const arm = (9 * this.width) / (this.box.clientWidth || this.width);
      const [x, y] = [this.pixel.x + 0.5, this.pixel.y + 0.5];
      for (const [stroke, wide] of [["#000", 5], ["#fff", 2]]) {
        const cross = document.createElementNS(SVG, "path");
        cross.setAttribute("d", `M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`);
        cross.setAttribute("stroke", stroke);
        cross.setAttribute("stroke-width", wide);
        made.push(cross);
      }
    }
    this.marks.replaceChildren(...made);
  }

  rectangle([x1, y1, x2, y2], attributes) {
    const made = document.createElementNS(SVG, "rect");
    for (const [name, value] of Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1, ...attributes })) {
      made.setAttribute(name, value);
    }
    return made;
  }

  // Show where a region lies, or with null none.
  region(vote) {
    this.shade.hidden = vote === null;
    if (vote) this.shade.src = `api/answers/${this.answer}/mask/${vote.mask}`;
    this.mark(undefined, vote?.box ?? null);
  }
}
