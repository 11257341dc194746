// Keys, drafts and time on the label page. Without this file every form still works.
document.documentElement.classList.add("js");

const form = document.getElementById("answer");
const live = document.getElementById("live");
const cards = [...document.querySelectorAll("#answer .card")];
let here = 0;
let changed = false;
let sending = false;

const say = (words) => { if (live) live.textContent = words; };
const inputs = (card) => [...card.querySelectorAll(`[name="rank:${card.dataset.response}"]`)];
const rankOf = (card) => inputs(card).find((input) => input.checked)?.value ?? "";

function go(number, focus = true) {
  if (!cards.length) return;
  here = (number + cards.length) % cards.length;
  cards.forEach((card, i) => card.classList.toggle("here", i === here));
  if (focus) {
    cards[here].focus({ preventScroll: true });
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    cards[here].scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
  }
}

function spoken(card) {
  const rank = rankOf(card);
  if (!rank) return `Answer ${card.dataset.letter} has no rank.`;
  if (rank === "F") return `Answer ${card.dataset.letter}: no answer at all.`;
  const tied = cards.filter((other) => other !== card && rankOf(other) === rank).map((other) => other.dataset.letter);
  return `Answer ${card.dataset.letter}: rank ${rank}${tied.length ? `, tied with ${tied.join(" and ")}` : ""}.`;
}

function summary() {
  const place = document.getElementById("summary");
  if (!place || !form) return;
  const parts = cards.map((card) => [card.dataset.letter, rankOf(card)]).filter(([, rank]) => rank).map(([who, rank]) => `${who} ${rank}`);
  const strength = form.querySelector("[name=strength]:checked");
  if (strength) parts.push(strength.parentElement.querySelector(".vh").textContent);
  place.textContent = parts.join(" · ");
}

function choose(card, value) {
  const all = inputs(card);
  if (all[0]?.type === "checkbox") {
    if (value !== "F" && value !== "") return false;
    all[0].checked = value === "F" && !all[0].checked;
  } else {
    const input = all.find((one) => one.value === value);
    if (!input) return false;
    input.checked = true;
  }
  touched();
  say(spoken(card));
  return true;
}

function pressNumber(number) {
  if (form.dataset.kind === "pair") {
    const notches = [...form.querySelectorAll("[name=strength]")];
    const input = notches.find((one) => one.value === (number === "0" ? "tie" : number));
    if (!input) return;
    input.checked = true;
    touched();
    say(input.parentElement.querySelector(".vh").textContent);
    return;
  }
  if (!choose(cards[here], number === "0" ? "" : number)) return;
  advance();
}

function advance() { // to the next answer that has no rank yet
  if (form.dataset.kind !== "rank" || !rankOf(cards[here])) return;
  for (let step = 1; step < cards.length; step++) {
    const next = (here + step) % cards.length;
    if (!rankOf(cards[next])) { go(next); return; }
  }
}

function toggle(id) {
  const box = document.getElementById(id);
  if (!box) return;
  box.open = !box.open;
  if (box.open) (box.querySelector("input[type=radio]") ?? box.querySelector("summary")).focus();
}

// -- keys

const typing = (target) => target.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const { target, key } = event;
  if (key === "Escape") {
    document.querySelectorAll(".bar details[open]").forEach((box) => { box.open = false; });
    if (cards.length) go(here);
    return;
  }
  if (typing(target) || target.closest("#skip form")) return;
  const lower = key.toLowerCase();
  if (key === "Enter") {
    if (target.matches("a, button, summary")) return;
    const main = document.querySelector('[data-key="enter"]');
    if (main) { event.preventDefault(); main.click(); }
    return;
  }
  const actions = { u: () => document.querySelector("#undo button")?.click(), s: () => toggle("skip"), "?": () => toggle("keys"),
    i: () => document.querySelector('nav [data-key="i"]')?.click(), p: () => document.getElementById("plain")?.click() };
  if (actions[lower]) { event.preventDefault(); actions[lower](); return; }
  if (!form || !cards.length) return;
  const radio = target.matches("input[type=radio]");
  if (lower === "j" || (key === "ArrowDown" && !radio)) { event.preventDefault(); go(here + 1); }
  else if (lower === "k" || (key === "ArrowUp" && !radio)) { event.preventDefault(); go(here - 1); }
  else if (lower === "f") { event.preventDefault(); if (choose(cards[here], "F")) advance(); }
  else if (lower === "e") { const box = form.querySelector("textarea[data-key=e]"); if (box) { event.preventDefault(); box.focus(); } }
  else if (/^[0-9]$/.test(key)) { event.preventDefault(); pressNumber(key); }
});

document.querySelectorAll("button[data-key=j]").forEach((one) => one.addEventListener("click", () => go(here + 1)));
document.querySelectorAll("button[data-key=k]").forEach((one) => one.addEventListener("click", () => go(here - 1)));
document.querySelectorAll("button[data-key=e]").forEach((one) => one.addEventListener("click", () => form.querySelector("textarea[data-key=e]").focus()));
cards.forEach((card, i) => card.addEventListener("pointerdown", () => go(i, false)));
cards.forEach((card, i) => card.addEventListener("focusin", () => go(i, false)));

// -- drafts and time

function touched() { changed = true; summary(); }

if (form) {
  const shown = performance.now();
  const active = form.elements.active_s;
  const first = form.elements.first_input_s;
  let seconds = Number(active.value) || 0;
  let lastInput = performance.now();
  for (const kind of ["keydown", "pointerdown", "pointermove", "scroll", "wheel"]) {
    document.addEventListener(kind, () => { lastInput = performance.now(); }, { passive: true });
  }
  for (const kind of ["keydown", "pointerdown"]) {
    document.addEventListener(kind, () => { if (!first.value) first.value = ((performance.now() - shown) / 1000).toFixed(1); });
  }
  setInterval(() => { // time counts while the page is seen and someone is there
    if (document.visibilityState === "visible" && performance.now() - lastInput < 60000) active.value = (seconds += 1).toFixed(1);
  }, 1000);
  form.addEventListener("input", (event) => {
    const box = event.target;
    const card = box.closest(".card");
    if (box.matches("textarea[data-key=e]") && card) { // writing says that it is rewritten
      const rewritten = inputs(card).find((one) => one.value === "");
      if (rewritten) rewritten.checked = true;
    }
    touched();
    if (card && box.name.startsWith("rank:")) say(spoken(card));
  });
  form.addEventListener("submit", (event) => {
    if (sending) { event.preventDefault(); return; }
    sending = true;
  });
  const draft = () => new URLSearchParams(new FormData(form));
  if (form.dataset.mode === "work") {
    setInterval(() => {
      if (!changed || sending) return;
      changed = false;
      fetch("/draft", { method: "POST", body: draft() }).catch(() => { changed = true; });
    }, 5000);
    addEventListener("pagehide", () => { if (changed && !sending) navigator.sendBeacon("/draft", draft()); });
  }
  addEventListener("pageshow", () => { sending = false; });
  summary();
  go(0, false);
}

const again = document.querySelector("[data-reload]");
if (again) setTimeout(() => location.reload(), 1000 * Number(again.dataset.reload));
