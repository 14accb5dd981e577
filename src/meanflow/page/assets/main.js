// Loads the network and shows the page that fits its samples.

import { Network } from "./network.js";
import { pictures } from "./pictures.js";
import { plane } from "./plane.js";

const status = document.getElementById("status");

async function main() {
  const about = await (await fetch(new URL("run.json", import.meta.url))).json();
  const flat = about.shape.length === 1, start = performance.now();
  document.title = `${about.title}: one call from noise`;
  document.getElementById("title").textContent = about.title;
  const network = await Network.load(about);
  await network.sample(new Float32Array(network.size), 1, 0); // warm, so that times are those of drawing
  document.getElementById("main").append(document.getElementById(flat ? "plane" : "pictures").content.cloneNode(true));
  await (flat ? plane : pictures)(network);
  status.textContent = `Runs on ${network.kind === "webgpu" ? "WebGPU" : "WebAssembly"} in this browser; ready after ${((performance.now() - start) / 1000).toFixed(1)} s.`;
  status.dataset.ready = network.kind;
  document.getElementById("about").textContent = about.line;
}

main().catch((error) => {
  status.classList.add("wrong");
  status.textContent = location.protocol === "file:"
    ? "Browsers do not let a page that was opened as a file load its network. Serve this folder, e.g. python -m http.server."
    : `This did not work: ${error.message ?? error}`;
  console.error(error);
});
