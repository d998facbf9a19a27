/* The points of all items, base against tuned, and the words that gain and lose. */

const PLOT = { width: 520, height: 400, left: 52, right: 12, top: 12, bottom: 42 };

/* Of ranks the place on a scale of halvings; a right answer stands above -0.5, and equal places are spread a little. */
function onAxis(benchmark, margin, index, axis) {
  if (!isRanked(benchmark)) return margin;
  return -Math.log2(1 - margin) + 0.5 + (((index * [0.618034, 0.754878][axis]) % 1) - 0.5) * 0.6;
}

const isRanked = benchmark => benchmark.form === "class" || benchmark.form === "retrieval";

function steps(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(times => times * power >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at++) found.push(Number((at * step).toPrecision(6)));
  return found;
}

function scale(values, start, end) {
  let low = Math.min(0, values.reduce((a, b) => Math.min(a, b), 0));
  let high = Math.max(0, values.reduce((a, b) => Math.max(a, b), 0));
  const room = (high - low || 1) * 0.04;
  [low, high] = [low - room, high + room];
  const place = value => start + ((value - low) / (high - low)) * (end - start);
  return Object.assign(place, { ticks: steps(low, high) });
}

/* The scatter of a benchmark; `open(index)` is called with the item whose point is chosen. */
function scatter(benchmark, names, open) {
  const at = [0, 1].map(model => benchmark.items.map((item, index) => onAxis(benchmark, item.margins[model], index, model)));
  const x = scale(at[0], PLOT.left, PLOT.width - PLOT.right);
  const y = scale(at[1], PLOT.height - PLOT.bottom, PLOT.top);
  const right = PLOT.width - PLOT.right, bottom = PLOT.height - PLOT.bottom;
  const line = (x1, y1, x2, y2, name) => draw("line", { x1, y1, x2, y2, class: name });
  const label = (x, y, text, anchor = "start") => draw("text", { x, y, "text-anchor": anchor }, text);
  const frame = draw("g", {}, line(PLOT.left, bottom, right, bottom, "axis"), line(PLOT.left, PLOT.top, PLOT.left, bottom, "axis"),
    line(x(0), PLOT.top, x(0), bottom, "zero"), line(PLOT.left, y(0), right, y(0), "zero"),
    label(PLOT.left + 6, PLOT.top + 12, "won"), label(right - 4, PLOT.top + 12, "both right", "end"),
    label(PLOT.left + 6, bottom - 6, "both wrong"), label(right - 4, bottom - 6, "lost", "end"));
  if (!isRanked(benchmark)) {
    frame.append(...x.ticks.map(value => label(x(value), bottom + 14, number(value), "middle")),
      ...y.ticks.map(value => label(PLOT.left - 5, y(value) + 4, number(value), "end")));
  }
  const what = isRanked(benchmark) ? "place (log scale, first place beyond the line)" : "margin";
  const side = PLOT.top + (bottom - PLOT.top) / 2;
  frame.append(label((PLOT.left + right) / 2, PLOT.height - 8, `${what}, ${names[0]}`, "middle"),
    draw("text", { x: 12, y: side, "text-anchor": "middle", transform: `rotate(-90 12 ${side})` }, `${what}, ${names[1]}`));
  const points = draw("g", { id: "points" }, benchmark.items.map((item, index) => draw("circle", {
    cx: x(at[0][index]).toFixed(1), cy: y(at[1][index]).toFixed(1), r: benchmark.items.length > 1500 ? 2.5 : 4,
    class: slug(item.kind), "data-index": index,
  })));
  const told = make("p", { class: "note", "aria-hidden": "true" }, "Choose a point to open its item.");
  const item = event => event.target.dataset.index && benchmark.items[event.target.dataset.index];
  points.addEventListener("click", event => item(event) && open(Number(event.target.dataset.index)));
  points.addEventListener("pointerover", event => {
    if (item(event)) told.textContent = `${item(event).id}: ${item(event).captions.join(" / ").slice(0, 160)}`;
  });
  const kinds = Object.entries(benchmark.kinds).map(([kind, count]) => `${count} ${kind}`).join(", ");
  const title = `Each item's margin with ${names[0]} and with ${names[1]}: ${kinds}.`;
  return make("figure", { class: "panel" }, make("h3", {}, "Before and after, item by item"),
    draw("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", "aria-label": title }, frame, points), told);
}

/* The words of a benchmark; `choose(word)` is called with the one that is pressed. */
function words(benchmark, isCompared, choose) {
  const { gain, lose } = benchmark.words;
  const heads = isCompared
    ? { gain: gain[0]?.value > 0 ? "Words that gain most" : "Words that lose least",
      lose: lose[0]?.value < 0 ? "Words that lose most" : "Words that gain least" }
    : { gain: "Words most often right", lose: "Words most often wrong" };
  const row = one => make("tr", {},
    make("td", {}, make("button", { type: "button", click: () => choose(one.word) }, one.word)),
    make("td", { class: "number" }, String(one.n)),
    make("td", { class: `number ${isCompared ? (one.value > 0 ? "up" : one.value < 0 ? "down" : "") : ""}` },
      percent(one.value, isCompared ? "+" : "")),
    make("td", { class: "number note" }, interval(one.interval, isCompared ? "+" : "")));
  const table = end => make("div", {}, make("h3", {}, heads[end]), make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "word"), make("th", { class: "number" }, "items"),
      make("th", { class: "number" }, isCompared ? "points" : "%"), make("th", { class: "number" }, "95 %"))),
    make("tbody", {}, benchmark.words[end].map(row))));
  const none = make("p", { class: "note" }, "No two words stand in five items or more.");
  const note = "Accuracy of the items that have the word. Rare words are drawn towards the mean before they are ordered.";
  return make("div", { class: "panel" }, gain.length
    ? [make("div", { class: "ends" }, table("gain"), table("lose")), make("p", { class: "note" }, note)]
    : none);
}
