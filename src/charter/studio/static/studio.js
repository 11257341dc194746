// Parts of a page that change while it is open. The server sends whole parts as HTML, every text in them escaped.
const reads = (part) => { // somebody marks text in it
  const marked = getSelection();
  return !marked.isCollapsed && part.contains(marked.anchorNode);
};
const watched = document.querySelector("[data-events]");
if (watched) {
  const events = new EventSource(watched.dataset.events);
  events.onmessage = (event) => {
    for (const [id, html] of Object.entries(JSON.parse(event.data))) {
      const part = document.getElementById(id);
      if (part && !part.contains(document.activeElement) && !reads(part)) part.innerHTML = html;
    }
  };
  addEventListener("pagehide", () => events.close());
}
