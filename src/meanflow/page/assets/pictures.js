// The page for images: draw with 1, 2 and 4 calls, and walk through noise.

import { classes, seed } from "./controls.js";
import { figure, latest, milliseconds, pixels } from "./drawing.js";
import { noise, slerp } from "./noise.js";

const CALLS = [1, 2, 4];
const SIDE = 5; // pictures along a side of the grid; our choice
const SHADE = 1 / 3; // noise is drawn so that three standard deviations reach black and white

export async function pictures(network) {
  const { about } = network, shape = about.decoder ? about.decoder.shape : about.shape;
  const redraw = latest(() => draw()), remap = latest(() => map()), rewalk = latest(() => step());
  const all = () => { redraw(); remap(); };
  const chosen = classes(about, all), read = seed(all);
  const file = (what) => () => `${about.run}-${chosen.name ? `class-${chosen.name}-` : ""}seed-${read()}-${what}.png`;
  const said = () => `${chosen.name ? `class ${chosen.name}, ` : ""}seed ${read()}`;

  const first = figure("Noise", about.shape, file("noise"));
  const drawn = CALLS.map((n) => figure(n === 1 ? "1 call" : `${n} calls`, shape, file(`${n}-calls`)));
  drawn.forEach((one, i) => { one.canvas.id = `calls-${CALLS[i]}`; });
  first.canvas.id = "noise";
  document.getElementById("figures").append(first.element, ...drawn.map((one) => one.element));

  const source = figure("Noise here", about.shape, file("walk-noise")), here = figure("1 call", shape, file("walk"));
  here.canvas.id = "walked";
  document.getElementById("here").append(source.element, here.element);
  const place = pad(() => rewalk());

  async function draw() {
    const z = noise(read(), network.size);
    first.show(pixels(z, about.shape, SHADE), `seed ${read()}`, `Noise of seed ${read()}`);
    for (const [i, calls] of CALLS.entries()) {
      const start = performance.now();
      const x = await network.sample(z, calls, chosen.label);
      const taken = performance.now() - start;
      drawn[i].show(pixels(x, shape), milliseconds(taken), `Picture of ${said()}, ${calls} ${calls === 1 ? "call" : "calls"}`);
      drawn[i].canvas.dataset.ms = String(taken);
      drawn[i].canvas.dataset.of = `${chosen.label},${read()}`;
    }
  }

  const corners = () => [0, 1, 2, 3].map((i) => noise(read() + i, network.size));
  const between = ([a, b, c, d], across, down) => slerp(slerp(a, b, across), slerp(c, d, across), down);

  async function step() {
    const z = between(corners(), place.across, place.down), start = performance.now();
    const x = await network.sample(z, 1, chosen.label);
    const taken = milliseconds(performance.now() - start);
    source.show(pixels(z, about.shape, SHADE), "interpolated", "Noise at this place of the grid");
    here.show(pixels(x, shape), taken, `Picture at this place of the grid, ${said()}`);
    here.canvas.dataset.at = `${place.across.toFixed(3)},${place.down.toFixed(3)}`;
  }

  async function map() {
    const canvas = document.getElementById("map"), [, height, width] = shape, edges = corners();
    [canvas.width, canvas.height] = [width * SIDE, height * SIDE];
    for (let row = 0; row < SIDE; row++) {
      const z = new Float32Array(SIDE * network.size);
      for (let i = 0; i < SIDE; i++) z.set(between(edges, i / (SIDE - 1), row / (SIDE - 1)), i * network.size);
      const x = await network.sample(z, 1, chosen.label), size = x.length / SIDE;
      for (let i = 0; i < SIDE; i++) {
        canvas.getContext("2d").putImageData(pixels(x.subarray(i * size, (i + 1) * size), shape), i * width, row * height);
      }
    }
    canvas.dataset.of = `${chosen.label},${read()}`;
    await rewalk();
  }

  await redraw();
  remap(); // not waited for: the first picture is there
}

// The square that is dragged over, by pointer or arrow keys; tells `moved` and holds the place in [0, 1].
function pad(moved) {
  const element = document.getElementById("pad"), knob = document.getElementById("knob");
  const place = { across: 0.5, down: 0.5 };
  const inside = (value) => Math.min(1, Math.max(0, value));
  const go = (across, down) => {
    place.across = inside(across);
    place.down = inside(down);
    // The outermost pictures of the grid have their middles at its corners' middles.
    const at = (value) => `${100 * (0.5 + value * (SIDE - 1)) / SIDE}%`;
    knob.style.left = at(place.across);
    knob.style.top = at(place.down);
    const [x, y] = [place.across, place.down].map((value) => Math.round(100 * value));
    element.setAttribute("aria-valuenow", String(x));
    element.setAttribute("aria-valuetext", `across ${x} %, down ${y} %`);
    moved();
  };
  const follow = (event) => {
    const box = element.getBoundingClientRect();
    const share = (value, start, length) => ((value - start) / length * SIDE - 0.5) / (SIDE - 1);
    go(share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height));
  };
  element.addEventListener("pointerdown", (event) => { element.setPointerCapture(event.pointerId); follow(event); });
  element.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  element.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const pace = event.shiftKey ? 0.2 : 0.05;
    go(place.across + pace * move[0], place.down + pace * move[1]);
  });
  return place;
}
