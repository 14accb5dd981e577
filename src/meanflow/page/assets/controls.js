// Class and seed: what both pages choose.

const BUTTONS = 24; // more classes than these are a list; our choice

// Radio buttons for few classes, a list for many; `changed` is told of each choice.
export function classes(about, changed) {
  const box = document.getElementById("classes");
  const state = { label: 0, name: "" };
  if (about.classes === null) return state;
  const names = about.class_names || Array.from({ length: about.classes }, (_, i) => String(i));
  const choose = (label) => { state.label = label; state.name = names[label]; };
  choose(0);
  box.hidden = false;
  box.querySelector(".choices").append(...(names.length <= BUTTONS ? radios : list)(names, (i) => { choose(i); changed(); }));
  return state;
}

function radios(names, chosen) {
  return names.map((name, i) => {
    const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: "class", value: String(i), checked: i === 0 });
    input.addEventListener("change", () => chosen(i));
    text.textContent = name;
    label.append(input, text);
    return label;
  });
}

function list(names, chosen) {
  const select = document.createElement("select");
  select.setAttribute("aria-label", "Class");
  names.forEach((name, i) => select.add(new Option(name, String(i))));
  select.addEventListener("change", () => chosen(select.selectedIndex));
  return [select];
}

// The seed's field with its buttons; returns a function that reads it.
export function seed(changed) {
  const input = document.getElementById("seed"), most = Number(input.max);
  const read = () => Math.min(most, Math.max(0, Math.floor(Number(input.value) || 0)));
  const set = (value) => { input.value = String(Math.min(most, Math.max(0, value))); changed(); };
  input.addEventListener("input", changed);
  input.addEventListener("change", () => set(read()));
  document.getElementById("before").addEventListener("click", () => set(read() - 1));
  document.getElementById("after").addEventListener("click", () => set(read() + 1));
  document.getElementById("random")?.addEventListener("click", () => set(Math.floor(Math.random() * 1e6)));
  return read;
}
