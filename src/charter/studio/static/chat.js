// The same prompt to every chosen model; texts of models enter the page as text, never as HTML.
const form = document.getElementById("chat");
if (form) {
  const answers = document.getElementById("answers");
  const [stop, fresh, copy, status] = ["stop", "fresh", "copy", "status"].map((id) => document.getElementById(id));
  let columns = []; // {model, messages, body}
  let work = null;

  const add = (body, who, text) => {
    const turn = document.createElement("div");
    turn.className = `text plain always turn ${who}`;
    turn.dir = "auto";
    turn.textContent = text;
    body.append(turn);
    return turn;
  };

  const begin = () => {
    work?.abort();
    const chosen = [...form.querySelectorAll("[name=model]")].map((box) => box.value).filter(Boolean);
    answers.className = `cards of-${chosen.length}`;
    columns = chosen.map((model) => {
      const card = document.createElement("article");
      card.className = "card";
      const head = document.createElement("h2");
      const body = document.createElement("div");
      head.textContent = model;
      body.className = "body";
      card.append(head, body);
      return { model, messages: [], body, card };
    });
    answers.replaceChildren(...columns.map((column) => column.card));
    copy.disabled = true;
    status.textContent = "";
  };

  const settings = () => ({
    temperature: Number(form.temperature.value), seed: Number(form.seed.value), max_tokens: Number(form.tokens.value),
  });
  const conversation = (column) => {
    const system = form.system.value.trim();
    return [...(system ? [{ role: "system", content: system }] : []), ...column.messages];
  };

  async function read(answer, turns) { // lines of JSON
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part; !(part = await reader.read()).done;) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((each) => JSON.parse(each))) {
        const { column, turn } = turns[line.i];
        if (line.error) turn.textContent += ` [${line.error}]`;
        if (line.text) { turn.textContent += line.shown ?? line.text; column.messages.at(-1).content += line.text; }
        if (line.finish === "length") turn.textContent += " …";
      }
    }
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = form.text.value.trim();
    if (!text || work) return;
    for (const column of columns) column.messages.push({ role: "user", content: text });
    const requests = columns.map((column) => ({ model: column.model, messages: conversation(column), ...settings() }));
    const turns = columns.map((column) => {
      add(column.body, "user", text);
      column.messages.push({ role: "assistant", content: "" });
      return { column, turn: add(column.body, "assistant", "") };
    });
    work = new AbortController();
    stop.disabled = false;
    status.textContent = "The models are writing. A model that was not used before is loaded first.";
    form.text.value = "";
    const body = new URLSearchParams({ form_token: form.form_token.value, requests: JSON.stringify(requests) });
    try {
      const answer = await fetch("/chat/stream", { method: "POST", body, signal: work.signal });
      if (answer.ok) { await read(answer, turns); status.textContent = "All answers are complete."; }
      else status.textContent = answer.status === 422 ? (await answer.json()).error : `Refused (${answer.status}); load the page again.`;
    } catch (error) {
      status.textContent = error.name === "AbortError" ? "Stopped." : "The connection was lost; send it again.";
    }
    for (const { column } of turns) { // a turn without an answer is not part of the conversation
      if (!column.messages.at(-1)?.content) column.messages.splice(-2);
    }
    copy.disabled = false;
    stop.disabled = true;
    work = null;
  });
  form.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  form.querySelectorAll("[name=model]").forEach((box) => box.addEventListener("change", begin));
  stop.addEventListener("click", () => work?.abort());
  fresh.addEventListener("click", () => { begin(); form.text.focus(); });
  copy.addEventListener("click", async () => {
    const all = columns.map((column) => ({ model: column.model, messages: conversation(column), ...settings() }));
    await navigator.clipboard.writeText(JSON.stringify(all, null, 2));
    status.textContent = "Copied.";
  });
  begin();
}
