// Keys, drafts and time on the label page. Without this file every form still works.
document.documentElement.classList.add("js");

const form = document.getElementById("answer");
const live = document.getElementById("live");
const cards = [...document.querySelectorAll("#answer .card")];
let here = 0;
let changed = false;
let sending = false;

const announce = (text) => { if (live) live.textContent = text; };
const words = JSON.parse(document.body.dataset.words ?? "{}");
const fill = (key, values) => words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
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
  const { letter } = card.dataset;
  if (!rank) return fill("no-rank", { letter });
  if (rank === "F") return fill("nonsense", { letter });
  const others = cards.filter((other) => other !== card && rankOf(other) === rank).map((other) => other.dataset.letter).join(" and ");
  return fill(others ? "tied" : "ranked", { letter, rank, others });
}

function summary() {
  const place = document.getElementById("summary");
  if (!place || !form) return;
  const parts = cards.map((card) => [card.dataset.letter, rankOf(card)]).filter(([, rank]) => rank).map(([who, rank]) => `${who} ${rank}`);
  const strength = form.querySelector("[name=strength]:checked");
  if (strength?.value) parts.push(strength.parentElement.querySelector(".vh").textContent);
  form.querySelectorAll("[data-principle]:checked").forEach((box) => parts.push(box.parentElement.title));
  place.textContent = parts.join(" · ");
}

function choose(card, value) {
  const all = inputs(card);
  if (all[0]?.type === "checkbox") {
    if (value !== "F" && value !== "") return false;
    all[0].checked = value === "F" && !all[0].checked;
  } else {
    const input = all.find((input) => input.value === value);
    if (!input) return false;
    input.checked = true;
  }
  touched();
  announce(spoken(card));
  return true;
}

function pressNumber(number) {
  if (form.dataset.kind === "pair") {
    const notches = [...form.querySelectorAll("[name=strength]")];
    const byKey = number === "0" ? (notches.some((input) => input.value === "tie") ? "tie" : "") : number;
    const input = notches.find((notch) => notch.value === byKey);
    if (!input) return;
    input.checked = true;
    touched();
    announce(input.parentElement.querySelector(".vh").textContent);
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

// A Latin letter or a digit counts as it is written; on any other keyboard the place of the key counts.
function pressed({ key, code }) {
  if (/^[a-z0-9?]$/i.test(key)) return key.toLowerCase();
  return /^(?:Key([A-Z])|(?:Digit|Numpad)([0-9]))$/.exec(code)?.slice(1).find(Boolean)?.toLowerCase() ?? key;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || sending) return;
  const { target } = event;
  const key = pressed(event);
  if (key === "Escape") {
    document.querySelectorAll(".bar details[open]").forEach((box) => { box.open = false; });
    if (cards.length) go(here);
    return;
  }
  if (typing(target) || target.closest("#skip form")) return;
  if (event.repeat && !key.startsWith("Arrow")) return; // a key that is held would act on the next page too
  if (key === "Enter") {
    if (target.matches("a, button, summary")) return;
    const main = document.querySelector('[data-key="enter"]');
    if (main) { event.preventDefault(); main.click(); }
    return;
  }
  const actions = { u: () => document.querySelector("#undo button")?.click(), s: () => toggle("skip"), "?": () => toggle("keys"),
    i: () => document.querySelector('nav [data-key="i"]')?.click(), p: () => document.getElementById("plain")?.click() };
  if (actions[key]) { event.preventDefault(); actions[key](); return; }
  if (!form || !cards.length) return;
  const principle = form.querySelector(`[data-principle="${CSS.escape(key)}"]`);
  if (principle) { event.preventDefault(); principle.click(); return; }
  if (key === "r") {
    const box = form.querySelector("details.comment");
    if (box) { event.preventDefault(); box.open = true; box.querySelector("textarea").focus(); }
    return;
  }
  const radio = target.matches("input[type=radio]");
  if (key === "j" || (key === "ArrowDown" && !radio)) { event.preventDefault(); go(here + 1); }
  else if (key === "k" || (key === "ArrowUp" && !radio)) { event.preventDefault(); go(here - 1); }
  else if (key === "f") { event.preventDefault(); if (choose(cards[here], "F")) advance(); }
  else if (key === "e") { const box = form.querySelector("textarea[data-key=e]"); if (box) { event.preventDefault(); box.focus(); } }
  else if (/^[0-9]$/.test(key)) { event.preventDefault(); pressNumber(key); }
});

document.querySelectorAll("button[data-key=j]").forEach((input) => input.addEventListener("click", () => go(here + 1)));
document.querySelectorAll("button[data-key=k]").forEach((input) => input.addEventListener("click", () => go(here - 1)));
document.querySelectorAll("button[data-key=e]").forEach((input) => input.addEventListener("click", () => form.querySelector("textarea[data-key=e]").focus()));
cards.forEach((card, i) => card.addEventListener("pointerdown", () => go(i, false)));
cards.forEach((card, i) => card.addEventListener("focusin", () => go(i, false)));

// -- what is written: kept in this browser until the server has it

const notice = document.getElementById("notice");
const { rater } = document.body.dataset;
const keptForms = [...document.querySelectorAll("form[data-keep]")];
const place = (kept) => `charter ${rater} ${kept.dataset.keep}`;
const unwritten = ["form_token", "set_id", "active_s", "first_input_s", ""];
const fields = (kept) => [...new FormData(kept)].filter(([name]) => !unwritten.includes(name));
let waiting = null; // a form that was sent while nothing could be stored

function touched() { changed = true; summary(); keptForms.forEach(keep); }

function keep(kept) {
  try { localStorage.setItem(place(kept), JSON.stringify(fields(kept))); } catch { /* no room, or not allowed */ }
}

function restore(kept) {
  let entries = null;
  try { entries = JSON.parse(localStorage.getItem(place(kept))); } catch { /* not allowed */ }
  if (!entries || JSON.stringify(entries) === JSON.stringify(fields(kept))) return;
  const values = new Map(entries);
  for (const input of kept.elements) {
    if (unwritten.includes(input.name)) continue;
    if (["radio", "checkbox"].includes(input.type)) input.checked = values.get(input.name) === input.value;
    else input.value = values.get(input.name) ?? "";
  }
  const comment = kept.querySelector("details.comment");
  if (comment?.querySelector("textarea").value) comment.open = true;
  changed = true;
  announce(words.restored);
  const status = document.querySelector(".said");
  if (status && !status.textContent) status.textContent = words.restored;
}

function warn(key) {
  if (!notice) return;
  if (!key && !notice.hidden && notice.dataset.key) announce(words.back);
  notice.dataset.key = key;
  notice.hidden = !key;
  const said = document.querySelector(".said");
  if (key && said) said.textContent = ""; // "Saved." of the last vote would contradict the notice
  if (key && notice.textContent !== words[key]) notice.textContent = words[key];
}

async function connected() { // and every form of this page belongs to the session of now
  let key = "away";
  try {
    const answer = await fetch("/session", { cache: "no-store" });
    if (answer.status === 401) key = "signed-out";
    if (answer.ok) {
      const now = await answer.json();
      key = now.rater_id === rater ? "" : "other-person";
      if (!key) document.querySelectorAll("[name=form_token]").forEach((input) => { input.value = now.form_token; });
    }
  } catch { /* the server is away */ }
  warn(key);
  return !key;
}

function lock(locked) { // what is pressed between sending a form and the next page belongs to neither
  sending = locked;
  if (form) form.inert = locked;
}

function send(sent) {
  lock(true);
  if (sent.dataset.keep) sessionStorage.setItem("charter sent", place(sent));
  sent.submit();
}

if (rater) {
  const sent = sessionStorage.getItem("charter sent");
  if (sent && !document.querySelector(".problem:not(#notice), .banner[role=alert]") && !(form && place(form) === sent)) {
    localStorage.removeItem(sent);
    sessionStorage.removeItem("charter sent");
  }
  keptForms.forEach(restore);
  document.querySelectorAll("form[method=post]").forEach((posted) => posted.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (sending) return;
    const { submitter } = event;
    if (posted.dataset.keep) keep(posted);
    lock(true);
    if (await connected()) {
      if (submitter?.hasAttribute("formaction")) posted.action = submitter.formAction;
      send(posted);
    } else {
      lock(false);
      waiting = posted;
    }
  }));
  keptForms.forEach((kept) => kept.addEventListener("input", () => { changed = true; keep(kept); }));
  addEventListener("pageshow", ({ persisted }) => { if (persisted) lock(false); });
  addEventListener("focus", () => { if (keptForms.length) connected(); });
  setInterval(async () => {
    if (sending || (!notice.dataset.key && !waiting && !(changed && keptForms.length))) return;
    if (!await connected() || sending) return; // somebody may have pressed Enter meanwhile
    if (waiting) { send(waiting); return; }
    if (!changed || form?.dataset.mode !== "work") return;
    changed = false;
    try {
      const answer = await fetch("/draft", { method: "POST", body: draft() });
      if (answer.ok && !changed) localStorage.removeItem(place(form));
      else changed = true;
    } catch { changed = true; warn("away"); }
  }, 5000);
}

function draft() { return new URLSearchParams(new FormData(form)); }

// -- time

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
      const rewritten = inputs(card).find((input) => input.value === "");
      if (rewritten) rewritten.checked = true;
    }
    touched();
    if (card && box.name.startsWith("rank:")) announce(spoken(card));
    if (box.dataset.principle) announce(fill(box.checked ? "decided" : "not-decided", { principle: box.parentElement.title }));
  });
  if (form.dataset.mode === "work") {
    addEventListener("pagehide", () => { if (changed && !sending) navigator.sendBeacon("/draft", draft()); });
  }
  summary();
  go(0, false);
}

const again = document.querySelector("[data-reload]");
if (again) setTimeout(() => location.reload(), 1000 * Number(again.dataset.reload));
