// The page for points of a plane: data, the arrows of u(z, r, t), and points that jump in one call.

import { classes, seed } from "./controls.js";
import { download, latest, milliseconds } from "./drawing.js";
import { noise } from "./noise.js";

const SIDE = 720, ARROWS = 17, POINTS = 400, FRAMES = 30; // pixels, arrows a side, points, frames of a jump; our choice

export async function plane(network) {
  const { about } = network, canvas = document.getElementById("scene"), told = document.getElementById("told");
  const [t, r] = ["t", "r"].map((id) => document.getElementById(id));
  canvas.width = canvas.height = SIDE;
  const state = { points: null, time: 1, arrows: null, moving: false };
  const refresh = latest(() => arrows()), chosen = classes(about, () => reset()), read = seed(() => reset());
  const at = (value) => SIDE / 2 + (value / about.reach) * (SIDE / 2);

  // Points of the seed's noise, each from a seed of its own as in `meanflow sample`.
  function reset() {
    const z = new Float32Array(2 * POINTS);
    for (let i = 0; i < POINTS; i++) z.set(noise(read() + i, 2), 2 * i);
    Object.assign(state, { points: z, time: 1 });
    told.textContent = `${POINTS} points of noise, seeds ${read()} to ${read() + POINTS - 1}`;
    refresh();
  }

  async function arrows() {
    const z = new Float32Array(2 * ARROWS * ARROWS), [from, to] = [Number(t.value), Number(r.value)];
    for (let i = 0; i < ARROWS * ARROWS; i++) {
      z[2 * i] = ((i % ARROWS + 0.5) / ARROWS * 2 - 1) * about.reach;
      z[2 * i + 1] = ((Math.floor(i / ARROWS) + 0.5) / ARROWS * 2 - 1) * about.reach;
    }
    const [end] = await network.jump(z, from, to, chosen.label);
    state.arrows = { z, end };
    canvas.dataset.of = `${from},${to}`;
    paint();
  }

  function paint() {
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.clearRect(0, 0, SIDE, SIDE);
    dots(pen, about.data || [], 2.2, colour("--data"));
    pen.strokeStyle = pen.fillStyle = colour("--accent");
    pen.lineWidth = 1.6;
    for (let i = 0; state.arrows && i < state.arrows.z.length; i += 2) {
      arrow(pen, ...[state.arrows.z, state.arrows.end].flatMap((z) => [at(z[i]), at(-z[i + 1])]));
    }
    if (state.points) dots(pen, state.points, 3, colour("--point"));
  }

  function dots(pen, z, radius, colour) {
    pen.fillStyle = colour;
    for (let i = 0; i < z.length; i += 2) {
      pen.beginPath();
      pen.arc(at(z[i]), at(-z[i + 1]), radius, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  async function jump() {
    const [from, to] = [state.time, Number(r.value)];
    if (state.moving || to >= from) {
      told.textContent = state.moving ? told.textContent : `The points are at time ${from}; choose a smaller r, or go back to noise.`;
      return;
    }
    state.moving = true;
    const z = state.points, [end, taken] = await network.jump(z, from, to, chosen.label);
    told.textContent = `One call took ${POINTS} points from time ${from} to ${to} in ${milliseconds(taken)}`;
    for (let frame = 1; frame <= (calm() ? 1 : FRAMES); frame++) {
      const share = calm() ? 1 : frame / FRAMES;
      state.points = z.map((value, i) => value + share * (end[i] - value));
      paint();
      await new Promise(requestAnimationFrame);
    }
    Object.assign(state, { points: end, time: to, moving: false });
    canvas.dataset.jumped = `${from},${to}`;
  }

  for (const [slider, other] of [[t, r], [r, t]]) {
    slider.addEventListener("input", () => {
      const [low, high] = slider === t ? [other, slider] : [slider, other];
      if (Number(low.value) > Number(high.value)) other.value = slider.value; // r never exceeds t
      show();
      refresh();
    });
  }
  const show = () => [["t", t], ["r", r]].forEach(([id, slider]) => {
    document.getElementById(`${id}-shown`).textContent = Number(slider.value).toFixed(2);
  });
  document.getElementById("jump").addEventListener("click", jump);
  document.getElementById("back").addEventListener("click", reset);
  document.getElementById("save").addEventListener("click", () => download(canvas, `${about.run}-plane.png`));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  reset();
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function arrow(pen, x0, y0, x1, y1) {
  const length = Math.hypot(x1 - x0, y1 - y0), angle = Math.atan2(y1 - y0, x1 - x0);
  if (length < 1) return;
  // Drawn at a third of its length, so that neighbours stay apart.
  const [x, y] = [x0 + (x1 - x0) / 3, y0 + (y1 - y0) / 3], head = Math.min(7, length / 3);
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x, y);
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x + head * Math.cos(angle), y + head * Math.sin(angle));
  for (const side of [2.4, -2.4]) pen.lineTo(x + head * Math.cos(angle + side), y + head * Math.sin(angle + side));
  pen.fill();
}
