"use strict";
// Every text from the data goes through textContent: nothing in it can become markup.
(() => {
  const PAGE = 20;
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // Tables: a click on a head sorts by it, a second one the other way round.
  const compare = (a, b) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    const [x, y] = [Number(a), Number(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) && Number.isNaN(y) ? a.localeCompare(b) : Number.isNaN(x) ? 1 : -1;
    return x - y;
  };
  const keyOf = (row, column) => {
    const key = row.cells[column].getAttribute("data-key");
    return key === null || key === "" ? null : key;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows];
        rows.sort((a, b) => {
          const [x, y] = [keyOf(a, column), keyOf(b, column)];
          // What has no value stays below, whichever way the rest is sorted.
          return x === null || y === null ? compare(x, y) : (falling ? -1 : 1) * compare(x, y);
        });
        body.append(...rows);
      });
    });
  }

  // Paper shows everything but the samples.
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) { details.open = true; opened.push(details); }
  });
  addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });

  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const by = (id) => document.getElementById(id);
  const [group, outcome, cell, search, disagreement, seeds, rows, count, more] =
    ["group", "outcome", "cell", "search", "disagreement", "seeds", "rows", "count", "more"].map(by);
  const option = (select, value, text) => {
    const element = make("option", "", text);
    element.value = value;
    select.append(element);
  };
  const [CELL, TEXT, OUTCOME, KEYWORD, JUDGE, SCORE] = [0, 1, 2, 3, 4, 5];
  const disagree = (answer) => answer[KEYWORD] !== null && answer[JUDGE] !== null && answer[KEYWORD] !== answer[JUDGE];
  const [BASELINE, SEED] = [0, 2];
  let found = [];
  let shown = 0;

  const chosen = () => data.groups[Number(group.value)];
  const nameOf = (answer) => chosen().cells[answer[CELL]][0];
  const kindOf = (answer) => chosen().cells[answer[CELL]][1];
  const answersOf = (row) => {
    return row[1].filter((answer) => seeds.checked || kindOf(answer) !== SEED);
  };
  const fits = (row) => {
    const answers = answersOf(row);
    const baseline = answers.find((answer) => kindOf(answer) === BASELINE);
    const wanted = outcome.value;
    return answers.some((answer) => {
      if (cell.value !== "" && answer[CELL] !== Number(cell.value)) return false;
      if (disagreement.checked && !disagree(answer)) return false;
      if (wanted === "other") return Boolean(baseline) && answer[OUTCOME] !== baseline[OUTCOME];
      return wanted === "" || answer[OUTCOME] === Number(wanted);
    });
  };
  const tags = (answer) => {
    const parts = [];
    if (answer[OUTCOME] !== null) parts.push(data.outcomes[answer[OUTCOME]]);
    if (answer[SCORE] !== null) parts.push(`${chosen().score} ${answer[SCORE]}`);
    if (chosen().judged && answer[JUDGE] === null) parts.push("not scored by the judge");
    if (disagree(answer)) parts.push(answer[KEYWORD] ? "keyword: refused, judge: not" : "keyword: not refused, judge: refused");
    return parts.join(" · ");
  };
  const colour = (answer) => (answer[OUTCOME] === null ? "unknown" : `o${answer[OUTCOME]}`);
  const reveal = (row, button, item) => {
    const open = item.querySelector(".answers");
    if (open) {
      open.remove();
      button.textContent = "Show answers";
      button.setAttribute("aria-expanded", "false");
      return;
    }
    const grid = make("div", "answers");
    for (const answer of answersOf(row)) {
      const card = make("article", `answer ${colour(answer)}`);
      const text = data.texts[answer[TEXT]];
      card.append(make("h4", "", nameOf(answer)), make("p", "tags", tags(answer)));
      card.append(make("p", text === "" ? "text empty" : "text", text === "" ? "(empty)" : text));
      grid.append(card);
    }
    item.append(grid);
    button.textContent = "Hide answers";
    button.setAttribute("aria-expanded", "true");
  };
  const itemOf = (row) => {
    const item = make("li");
    const strip = make("div", "strip");
    strip.setAttribute("role", "img");
    const counts = new Map();
    for (const answer of answersOf(row)) {
      const name = answer[OUTCOME] === null ? "answered" : data.outcomes[answer[OUTCOME]];
      counts.set(name, (counts.get(name) || 0) + 1);
      const square = make("span", colour(answer) + (disagree(answer) ? " differs" : ""));
      square.title = `${nameOf(answer)}: ${tags(answer)}`;
      strip.append(square);
    }
    strip.setAttribute("aria-label", [...counts].map(([name, times]) => `${times} ${name}`).join(", "));
    const button = make("button", "", "Show answers");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => reveal(row, button, item));
    const line = make("div", "ask");
    line.append(strip, button);
    item.append(make("p", "prompt", data.texts[row[0]]), line);
    return item;
  };
  const showMore = () => {
    const next = found.slice(shown, shown + PAGE);
    rows.append(...next.map(itemOf));
    shown += next.length;
    more.hidden = shown >= found.length;
  };
  const filter = () => {
    const words = search.value.trim().toLowerCase();
    found = chosen().rows.filter((row) => (words === "" || data.texts[row[0]].toLowerCase().includes(words)) && fits(row));
    count.textContent = `${found.length} of ${chosen().rows.length} prompts`;
    rows.replaceChildren();
    shown = 0;
    showMore();
  };
  const changeGroup = () => {
    outcome.replaceChildren();
    cell.replaceChildren();
    const used = new Set(chosen().rows.flatMap((row) => row[1].map((answer) => answer[OUTCOME])));
    option(outcome, "", "any");
    data.outcomes.forEach((name, number) => { if (used.has(number)) option(outcome, String(number), name); });
    option(outcome, "other", "other than the baseline's");
    const asked = new Set(chosen().rows.flatMap((row) => row[1].map((answer) => answer[CELL])));
    option(cell, "", "any");
    chosen().cells.forEach(([name, kind], number) => { if (asked.has(number) && (seeds.checked || kind !== SEED)) option(cell, String(number), name); });
    disagreement.disabled = !chosen().judged;
    if (!chosen().judged) disagreement.checked = false;
    const key = by("outcome-key");
    key.replaceChildren();
    data.outcomes.forEach((name, number) => {
      if (!used.has(number)) return;
      const entry = make("li");
      entry.append(make("span", `swatch stack o${number}`), document.createTextNode(name));
      key.append(entry);
    });
    filter();
  };
  by("filters").addEventListener("submit", (event) => event.preventDefault());
  group.addEventListener("change", changeGroup);
  seeds.addEventListener("change", changeGroup);
  for (const control of [outcome, cell, disagreement]) control.addEventListener("change", filter);
  search.addEventListener("input", filter);
  more.addEventListener("click", showMore);
  if (data.groups.length) changeGroup();
  else count.textContent = "No task of these runs generated text.";
})();
