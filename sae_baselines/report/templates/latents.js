"use strict";
const hits = document.getElementById("hits");
const search = document.getElementById("search");
if (search) {
  const rows = [...document.querySelectorAll("table.latents tr.row")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  search.closest("p").hidden = false;
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    let found = 0;
    rows.forEach((row, i) => {
      row.hidden = !texts[i].includes(wanted);
      found += !row.hidden;
    });
    hits.textContent = wanted ? `${found} of ${rows.length} rows` : "";
  });
}
const pairs = document.getElementById("pairs");
if (pairs) {
  const answers = () => Object.fromEntries(new FormData(pairs));
  const all = pairs.querySelectorAll("fieldset").length;
  const count = () => { hits.textContent = `${Object.keys(answers()).length} of ${all} answered`; };
  pairs.addEventListener("change", count);
  pairs.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = JSON.stringify({ page: pairs.dataset.page, answers: answers() }, null, 2);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "latents_answers.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  count();
}
