// Samples as pixels.

export const SMOOTH = 64; // pixels a side from which pictures are enlarged without visible squares; our choice

// Images [C, H, W] in [-1, 1] as RGBA; `gain` scales values that are not images, such as noise.
export function pixels(x, [channels, height, width], gain = 1) {
  const image = new ImageData(width, height), area = width * height;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) {
      const value = x[(channels >= 3 ? c : 0) * area + i] * gain;
      image.data[4 * i + c] = Math.round((Math.max(-1, Math.min(1, value)) + 1) * 127.5);
    }
    image.data[4 * i + 3] = 255;
  }
  return image;
}

// A figure with a canvas, a title, a line for milliseconds and a button that saves the picture.
export function figure(title, shape, name, seconds = true) {
  const element = document.createElement("figure"), canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption"), strong = document.createElement("strong");
  const ms = document.createElement("span"), save = document.createElement("button");
  [canvas.width, canvas.height] = [shape[2], shape[1]];
  canvas.setAttribute("role", "img");
  if (shape[1] >= SMOOTH) element.classList.add("smooth");
  element.style.setProperty("--ratio", `${shape[2]} / ${shape[1]}`);
  strong.textContent = title;
  ms.className = "ms";
  save.type = "button";
  save.textContent = "Download PNG";
  save.setAttribute("aria-label", `Download as PNG: ${title}`);
  save.addEventListener("click", () => download(canvas, name()));
  caption.append(strong, ms);
  element.append(canvas, caption, save);
  const show = (image, text, label) => {
    canvas.getContext("2d").putImageData(image, 0, 0);
    ms.textContent = text;
    canvas.setAttribute("aria-label", label);
  };
  return { element, canvas, show };
}

export function download(canvas, name) {
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
}

export function milliseconds(value) { return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`; }

// Runs a task again as long as it was asked for while it ran: the latest wish wins and none waits in a queue.
export function latest(task) {
  let busy = false, again = false;
  return async function wish() {
    if (busy) { again = true; return; }
    busy = true;
    try { do { again = false; await task(); } while (again); } finally { busy = false; }
  };
}
