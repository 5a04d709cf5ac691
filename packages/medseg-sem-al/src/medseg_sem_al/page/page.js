"use strict";
// One picture at a time: ids is the mask, W x H values, 255 where nobody labelled.

const $ = (id) => document.getElementById(id);
const token = location.hash.slice(1);
const UNSEEN = 255, MOST_STEPS = 60;
const layers = { image: $("image"), warm: $("warm"), mask: $("mask"), marks: $("marks") };
let state = { pictures: [], classes: [] };
let now = null; // { name, width, height, boxes, ids, base, undo, redo, edited }
let tool = "brush", chosen = 0, corners = [], stroke = null, view = { x: 0, y: 0, zoom: 1 }, grabbed = null, wanted = 0, drawn = "";

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { "X-Token": token, ...(options.headers || {}) } });
  if (!answer.ok) {
    const error = new Error((await answer.text()).trim() || answer.statusText);
    error.status = answer.status;
    throw error;
  }
  return answer;
}

function say(text, bad = false) {
  const place = $("message");
  place.textContent = text;
  place.className = bad ? "bad" : "";
}

async function refresh() {
  try {
    state = await (await ask("/api/state")).json();
    $("loop").textContent = state.ended || `Round ${state.round}`;
    if (drawn !== JSON.stringify(state.pictures)) drawList();
    if (!$("classes").children.length) drawClasses();
    const there = state.pictures.some((picture) => now && picture.name === now.name);
    if ((!now || (!there && !now.edited)) && state.pictures.length) {
      await show((state.pictures.find((picture) => !picture.taken) || state.pictures[0]).name);
    }
    if (!state.pictures.length) $("where").textContent = state.ended || "nothing is asked for yet";
  } catch (error) {
    $("loop").textContent = `The loop does not answer (${error.message}); what is on this page is not lost while it stays open.`;
  }
}

function drawList() {
  drawn = JSON.stringify(state.pictures);
  $("pictures").replaceChildren(...state.pictures.map((picture) => {
    const button = document.createElement("button");
    button.textContent = picture.refused ? `${picture.name}: not taken, ${picture.refused}` : picture.name;
    button.classList.toggle("refused", Boolean(picture.refused));
    button.dataset.name = picture.name;
    button.classList.toggle("on", Boolean(now) && now.name === picture.name);
    button.classList.toggle("done", picture.taken);
    button.classList.toggle("edited", Boolean(now) && now.name === picture.name && now.edited);
    button.addEventListener("click", () => leave(() => show(picture.name)));
    return button;
  }));
}

function leave(then) {
  if (!now || !now.edited) return then();
  say(`${now.name} is not saved.`, true);
  for (const [text, action] of [["Save it", async () => { await save(); if (!now.edited) then(); }], ["Drop my changes", then]]) {
    const button = document.createElement("button");
    button.textContent = text;
    button.addEventListener("click", action);
    $("message").append(button);
  }
}

function drawClasses() {
  const rows = [...state.classes, { name: "no label", colour: [255, 255, 255], id: UNSEEN }];
  $("classes").replaceChildren(...rows.map((row, place) => {
    const button = document.createElement("button"), swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${row.colour})`;
    button.append(swatch, row.name);
    button.title = row.id === UNSEEN ? "E: erase" : `${place + 1}`;
    button.dataset.id = row.id;
    button.addEventListener("click", () => choose(row.id));
    return button;
  }));
  choose(chosen);
}

function choose(id) {
  chosen = id;
  for (const button of $("classes").children) button.classList.toggle("on", Number(button.dataset.id) === id);
}

function take(name) {
  tool = name;
  if (name !== "polygon") corners = [];
  for (const button of $("tools").children) button.classList.toggle("on", button.dataset.tool === name);
  $("stage").classList.toggle("moving", name === "move");
  drawMarks();
}

async function bitmap(path) {
  return createImageBitmap(await (await ask(path)).blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

async function show(name) {
  const turn = ++wanted, part = encodeURIComponent(name), before = now && now.undo.length;
  let image, heat, mask, ids;
  try {
    [image, heat, mask] = await Promise.all([bitmap(`/api/image/${part}`), bitmap(`/api/heat/${part}`), ask(`/api/mask/${part}`)]);
    ids = new Uint8Array(await mask.arrayBuffer());
  } catch (error) {
    return say(error.message, true);
  }
  if (turn !== wanted || stroke || (now && now.undo.length !== before)) return; // another was chosen, or this one painted on
  const picture = state.pictures.find((one) => one.name === name), why = decodeURIComponent(mask.headers.get("X-Why"));
  if (!picture) return;
  grabbed = null;
  now = { name, width: image.width, height: image.height, boxes: picture.boxes, ids, base: mask.headers.get("X-Version"), undo: [], redo: [], edited: false };
  for (const canvas of Object.values(layers)) [canvas.width, canvas.height] = [now.width, now.height];
  layers.image.getContext("2d").drawImage(image, 0, 0);
  layers.warm.getContext("2d").drawImage(heat, 0, 0);
  corners = [];
  $("where").textContent = `Round ${state.round}, ${name}`;
  drawMask(0, 0, now.width, now.height);
  drawMarks();
  drawList();
  fit();
  say(why ? `What was saved cannot be read, this is the proposal: ${why}` : "", Boolean(why));
  buttons();
}

function drawMask(left, top, right, bottom) {
  const [width, height] = [right - left, bottom - top];
  if (width <= 0 || height <= 0) return;
  const pixels = new ImageData(width, height), colours = new Map(state.classes.map((row) => [row.id, row.colour]));
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++, place += 4) {
      const colour = colours.get(now.ids[(top + y) * now.width + left + x]);
      if (colour) pixels.data.set([...colour, 255], place);
    }
  }
  layers.mask.getContext("2d").putImageData(pixels, left, top);
}

function drawMarks() {
  if (!now) return;
  const pen = layers.marks.getContext("2d");
  pen.clearRect(0, 0, now.width, now.height);
  pen.lineWidth = Math.max(1, 1.5 / view.zoom);
  pen.strokeStyle = "#fff";
  for (const [top, left, bottom, right] of now.boxes) {
    if (right - left < now.width || bottom - top < now.height) pen.strokeRect(left, top, right - left, bottom - top);
  }
  if (corners.length) {
    pen.strokeStyle = "#ffd54a";
    pen.beginPath();
    corners.forEach(([x, y]) => pen.lineTo(x, y));
    pen.stroke();
  }
}

// Every change goes through here: what was there before is kept for undo.
function change(paint) {
  const before = now.ids.slice();
  paint(now.ids);
  remember(before);
}

function remember(before) {
  let [left, top, right, bottom] = [now.width, now.height, 0, 0];
  for (let place = 0; place < before.length; place++) {
    if (before[place] === now.ids[place]) continue;
    const x = place % now.width, y = (place - x) / now.width;
    left = Math.min(left, x); right = Math.max(right, x + 1);
    top = Math.min(top, y); bottom = Math.max(bottom, y + 1);
  }
  if (right <= left) return;
  now.undo.push(cut(before, left, top, right, bottom));
  if (now.undo.length > MOST_STEPS) now.undo.shift();
  now.redo = [];
  now.edited = true;
  drawMask(left, top, right, bottom);
  buttons();
}

function cut(ids, left, top, right, bottom) {
  const rows = [];
  for (let y = top; y < bottom; y++) rows.push(ids.slice(y * now.width + left, y * now.width + right));
  return { left, top, right, bottom, rows };
}

function swap(from, to) {
  const part = now && from.pop();
  if (!part) return;
  const { left, top, right, bottom } = part;
  to.push(cut(now.ids, left, top, right, bottom));
  part.rows.forEach((row, y) => now.ids.set(row, (top + y) * now.width + left));
  now.edited = true;
  drawMask(left, top, right, bottom);
  buttons();
}

function buttons() {
  $("undo").disabled = !now || !now.undo.length;
  $("redo").disabled = !now || !now.redo.length;
  $("save").disabled = !now;
  for (const button of $("pictures").children) button.classList.toggle("edited", Boolean(now) && now.edited && button.dataset.name === now.name);
}

function disc(ids, x, y, radius) {
  const reach = radius - 0.5;
  for (let row = Math.max(0, y - radius); row <= Math.min(now.height - 1, y + radius); row++) {
    for (let column = Math.max(0, x - radius); column <= Math.min(now.width - 1, x + radius); column++) {
      if ((row - y) ** 2 + (column - x) ** 2 <= reach * reach) ids[row * now.width + column] = chosen;
    }
  }
}

function line([x0, y0], [x1, y1]) {
  const radius = Number($("radius").value), steps = Math.max(1, Math.abs(x1 - x0), Math.abs(y1 - y0));
  for (let step = 0; step <= steps; step++) {
    disc(now.ids, Math.round(x0 + ((x1 - x0) * step) / steps), Math.round(y0 + ((y1 - y0) * step) / steps), radius);
  }
  const reach = radius + 1;
  drawMask(Math.max(0, Math.min(x0, x1) - reach), Math.max(0, Math.min(y0, y1) - reach),
    Math.min(now.width, Math.max(x0, x1) + reach), Math.min(now.height, Math.max(y0, y1) + reach));
}

function flood(ids, x, y) {
  const old = ids[y * now.width + x], edge = [[x, y]];
  if (old === chosen) return;
  ids[y * now.width + x] = chosen;
  while (edge.length) {
    const [column, row] = edge.pop();
    for (const [a, b] of [[column - 1, row], [column + 1, row], [column, row - 1], [column, row + 1]]) {
      if (a >= 0 && b >= 0 && a < now.width && b < now.height && ids[b * now.width + a] === old) {
        ids[b * now.width + a] = chosen;
        edge.push([a, b]);
      }
    }
  }
}

function polygon(ids) {
  for (let y = 0; y < now.height; y++) {
    const crossed = [];
    corners.forEach(([x0, y0], place) => {
      const [x1, y1] = corners[(place + 1) % corners.length], middle = y + 0.5;
      if (y0 <= middle !== y1 <= middle) crossed.push(x0 + ((middle - y0) / (y1 - y0)) * (x1 - x0));
    });
    crossed.sort((a, b) => a - b);
    for (let pair = 0; pair + 1 < crossed.length; pair += 2) {
      for (let x = Math.max(0, Math.ceil(crossed[pair] - 0.5)); x + 0.5 < Math.min(now.width, crossed[pair + 1]); x++) ids[y * now.width + x] = chosen;
    }
  }
}

function place(event) {
  const box = $("stage").getBoundingClientRect();
  return [(event.clientX - box.left - view.x) / view.zoom, (event.clientY - box.top - view.y) / view.zoom];
}

function look() {
  $("sheet").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
  drawMarks();
}

function fit() {
  const box = $("stage").getBoundingClientRect();
  view.zoom = Math.min(box.width / now.width, box.height / now.height);
  view.x = (box.width - view.zoom * now.width) / 2;
  view.y = (box.height - view.zoom * now.height) / 2;
  look();
}

function zoom(factor, x, y) {
  const box = $("stage").getBoundingClientRect();
  [x, y] = [x ?? box.width / 2, y ?? box.height / 2];
  const next = Math.min(40, Math.max(0.05, view.zoom * factor));
  view.x = x - ((x - view.x) * next) / view.zoom;
  view.y = y - ((y - view.y) * next) / view.zoom;
  view.zoom = next;
  look();
}

async function save(saved = now, force = false) {
  if (!saved) return;
  const ids = saved.ids.slice();
  try {
    const headers = { "X-Version": force ? "any" : saved.base, "Content-Type": "application/octet-stream" };
    const answer = await ask(`/api/mask/${encodeURIComponent(saved.name)}`, { method: "POST", headers, body: ids });
    saved.base = answer.headers.get("X-Version");
    saved.edited = ids.some((id, at) => id !== saved.ids[at]);
    say(`${saved.name} is saved.`);
    buttons();
  } catch (error) {
    say(error.message, true);
    if (error.status !== 409) return;
    for (const [text, action] of [["Load theirs", () => show(saved.name)], ["Save mine over it", () => save(saved, true)]]) {
      const button = document.createElement("button");
      button.textContent = text;
      button.addEventListener("click", action);
      $("message").append(button);
    }
  }
}

function closePolygon() {
  if (corners.length > 2) change(polygon);
  corners = [];
  drawMarks();
}

$("stage").addEventListener("pointerdown", (event) => {
  if (!now) return;
  $("stage").setPointerCapture(event.pointerId);
  const at = place(event), pixel = at.map(Math.floor);
  const inside = pixel[0] >= 0 && pixel[1] >= 0 && pixel[0] < now.width && pixel[1] < now.height;
  if (tool === "move" || event.button === 1 || event.shiftKey) grabbed = [event.clientX - view.x, event.clientY - view.y];
  else if (tool === "brush") { stroke = { before: now.ids.slice(), last: pixel }; line(pixel, pixel); }
  else if (tool === "fill" && inside) change((ids) => flood(ids, ...pixel));
  else if (tool === "polygon") { corners.push(at); drawMarks(); }
});
$("stage").addEventListener("pointermove", (event) => {
  if (grabbed) { [view.x, view.y] = [event.clientX - grabbed[0], event.clientY - grabbed[1]]; look(); }
  if (stroke) { const pixel = place(event).map(Math.floor); line(stroke.last, pixel); stroke.last = pixel; }
});
const lift = () => { if (stroke) { const { before } = stroke; stroke = null; remember(before); } grabbed = null; };
$("stage").addEventListener("pointerup", lift);
$("stage").addEventListener("pointercancel", lift);
$("stage").addEventListener("dblclick", () => tool === "polygon" && closePolygon());
$("stage").addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = $("stage").getBoundingClientRect();
  if (now) zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
for (const button of $("tools").children) button.addEventListener("click", () => take(button.dataset.tool));
$("undo").addEventListener("click", () => now && swap(now.undo, now.redo));
$("redo").addEventListener("click", () => now && swap(now.redo, now.undo));
$("in").addEventListener("click", () => now && zoom(1.4));
$("out").addEventListener("click", () => now && zoom(1 / 1.4));
$("fit").addEventListener("click", () => now && fit());
$("save").addEventListener("click", () => save());
$("heat").addEventListener("change", (event) => { layers.warm.hidden = !event.target.checked; });
$("opacity").addEventListener("input", (event) => { layers.mask.style.opacity = event.target.value / 100; });
document.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase(), ctrl = event.ctrlKey || event.metaKey;
  if (ctrl && key === "s") { event.preventDefault(); save(); }
  else if (ctrl && key === "z" && !event.shiftKey) { event.preventDefault(); $("undo").click(); }
  else if (ctrl && (key === "y" || key === "z")) { event.preventDefault(); $("redo").click(); }
  else if (ctrl) return;
  else if (key === "enter") closePolygon();
  else if (key === "escape") { corners = []; drawMarks(); }
  else if (key === "e") choose(UNSEEN);
  else if (key >= "1" && key <= String(Math.min(9, state.classes.length))) choose(state.classes[Number(key) - 1].id);
  else if ({ b: 1, f: 1, p: 1, m: 1 }[key]) take({ b: "brush", f: "fill", p: "polygon", m: "move" }[key]);
  else if (key === "+" || key === "-") $(key === "+" ? "in" : "out").click();
  else if (key === "0") $("fit").click();
});
window.addEventListener("beforeunload", (event) => { if (now && now.edited) event.preventDefault(); });
window.addEventListener("resize", () => now && fit());
layers.mask.style.opacity = $("opacity").value / 100;
take("brush");
buttons();
refresh();
setInterval(refresh, 3000);
