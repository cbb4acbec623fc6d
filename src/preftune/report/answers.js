"use strict";
(() => {
  const step = 10;
  const form = document.getElementById("filter");
  const answers = [...document.querySelectorAll("#all-answers > .answer")];
  const search = document.getElementById("search");
  const category = document.getElementById("category");
  const outcome = document.getElementById("outcome");
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  const none = document.getElementById("none");
  const plain = (text) => text.normalize("NFKC").toLowerCase();
  let texts = null; // read from the page when something is searched for first
  let limit = step;

  function words(answer) {
    return plain([...answer.querySelectorAll(".text")].map((text) => text.textContent).join("\n"));
  }

  function matching() {
    const wanted = plain(search.value).split(/\s+/).filter(Boolean);
    if (wanted.length && !texts) texts = answers.map(words);
    return answers.filter((answer, place) =>
      wanted.every((word) => texts[place].includes(word)) &&
      (!category || !category.value || answer.dataset.category === category.value) &&
      (!outcome.value || answer.dataset.marks.split(" ").includes(outcome.value)));
  }

  function show() {
    const matches = matching();
    const shown = new Set(matches.slice(0, limit));
    for (const answer of answers) answer.hidden = !shown.has(answer);
    found.textContent = `${shown.size} of ${matches.length}` + (matches.length < answers.length ? " found" : "");
    more.hidden = matches.length <= limit;
    more.textContent = `Show ${Math.min(step * 2, matches.length - limit)} more`;
    none.hidden = matches.length > 0;
  }

  function begin() {
    limit = step;
    show();
  }

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", begin);
  more.addEventListener("click", () => {
    const before = answers.filter((answer) => !answer.hidden).length;
    limit += step * 2;
    show();
    const next = answers.filter((answer) => !answer.hidden)[before];
    if (next) { next.tabIndex = -1; next.focus({ preventScroll: true }); }
  });
  window.addEventListener("beforeprint", () => { for (const answer of answers) answer.hidden = false; });
  window.addEventListener("afterprint", show);
  show();
})();
