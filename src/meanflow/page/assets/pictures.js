// The page for images: draw with 1, 2 and 4 calls, and walk through noise.

import { classes, seed } from "./controls.js";
import { SMOOTH, figure, latest, milliseconds, pixels } from "./drawing.js";
import { noise, slerp } from "./noise.js";

const CALLS = [1, 2, 4];
const SIDE = 5; // pictures along a side of the grid; our choice
const GAP = 1 / 8; // between them, of a picture's side
const EDGE = 0.5 / (SIDE + (SIDE - 1) * GAP); // from the grid's edge to the middle of the outermost picture, of its side
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
    const { label } = chosen, number = read(), which = said();
    const z = noise(number, network.size);
    first.show(pixels(z, about.shape, SHADE), `seed ${number}`, `Noise of seed ${number}`);
    for (const [i, calls] of CALLS.entries()) {
      const [x, taken] = await network.sample(z, calls, label);
      drawn[i].show(pixels(x, shape), milliseconds(taken), `Picture of ${which}, ${calls} ${calls === 1 ? "call" : "calls"}`);
      Object.assign(drawn[i].canvas.dataset, { ms: taken, of: `${label},${number}` });
    }
  }

  const corners = () => [0, 1, 2, 3].map((i) => noise(read() + i, network.size));
  const between = ([a, b, c, d], across, down) => slerp(slerp(a, b, across), slerp(c, d, across), down);

  async function step() {
    const { across, down } = place, z = between(corners(), across, down);
    const [x, taken] = await network.sample(z, 1, chosen.label);
    source.show(pixels(z, about.shape, SHADE), "interpolated", "Noise at this place of the grid");
    here.show(pixels(x, shape), milliseconds(taken), `Picture at this place of the grid, ${said()}`);
    here.canvas.dataset.at = `${across.toFixed(3)},${down.toFixed(3)}`;
  }

  async function map() {
    const canvas = document.getElementById("map"), [, height, width] = shape, edges = corners();
    const of = `${chosen.label},${read()}`, { label } = chosen;
    const [wide, high] = [width, height].map((side) => side + Math.max(1, Math.round(side * GAP)));
    [canvas.width, canvas.height] = [wide * (SIDE - 1) + width, high * (SIDE - 1) + height];
    canvas.classList.toggle("smooth", height >= SMOOTH);
    document.getElementById("corners").textContent = [0, 1, 2, 3].map((i) => read() + i).join(", ");
    for (let row = 0; row < SIDE; row++) {
      const z = new Float32Array(SIDE * network.size);
      for (let i = 0; i < SIDE; i++) z.set(between(edges, i / (SIDE - 1), row / (SIDE - 1)), i * network.size);
      const [x] = await network.sample(z, 1, label), size = x.length / SIDE;
      for (let i = 0; i < SIDE; i++) {
        canvas.getContext("2d").putImageData(pixels(x.subarray(i * size, (i + 1) * size), shape), i * wide, row * high);
      }
    }
    canvas.dataset.of = of;
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
    const at = (value) => `${100 * (EDGE + value * (1 - 2 * EDGE))}%`;
    knob.style.left = at(place.across);
    knob.style.top = at(place.down);
    const [x, y] = [place.across, place.down].map((value) => Math.round(100 * value));
    element.setAttribute("aria-valuenow", String(x));
    element.setAttribute("aria-valuetext", `across ${x} %, down ${y} %`);
    moved();
  };
  const follow = (event) => {
    const box = element.getBoundingClientRect();
    const share = (value, start, length) => ((value - start) / length - EDGE) / (1 - 2 * EDGE);
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
