// A file of prompts is read in the browser, so that it can be seen and changed before it is sent.
const form = document.getElementById("tester");
const file = document.getElementById("file");
file?.addEventListener("change", async () => {
  if (!file.files.length) return;
  form.text.value = await file.files[0].text();
  const ending = file.files[0].name.split(".").pop().toLowerCase();
  form.way.value = ["jsonl", "csv"].includes(ending) ? ending : "lines";
});
