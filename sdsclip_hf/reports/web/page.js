/* The page: a table of scores, and for one benchmark at a time its items, filtered, ordered and shown in pages. */

const A_PAGE = 24, CAPTIONS = 5;
const content = JSON.parse(byId("content").textContent);
const names = content.models.map(model => model.run);
const isCompared = names.length > 1;
let thumbnails = null;  // read when the first picture is shown
let benchmark, shown, at, kind;

function thumbnail(place) {
  thumbnails ??= JSON.parse(byId("thumbnails").textContent);
  return thumbnails[place];
}

function showHead() {
  byId("title").textContent = document.title = isCompared ? `${names[0]} against ${names[1]}` : names[0];
  const others = content.others.length ? ` Also evaluated: ${content.others.join(", ")}.` : "";
  byId("about").textContent = `${content.command} (sdsclip_hf ${content.version}).${others}`;
  byId("legend").append(...content.models.map((model, place) =>
    make("span", {}, make("i", { class: `m${place}` }), model.name)));
}

function showScores() {
  const head = (text, name = "") => make("th", { scope: "col", class: name }, text);
  const compared = isCompared ? [head("difference", "number"), head("McNemar p", "number")] : [];
  const cell = text => make("td", { class: "number" }, text);
  const rows = content.benchmarks.flatMap(one => one.scores.map(row => make("tr", {},
    make("td", {}, one.label), make("td", {}, row.subset), make("td", {}, row.score), cell(row.n.toLocaleString("en")),
    cell(row.runs.map(run => run.ties).join("/")),
    row.runs.map(run => cell(`${percent(run.value)} ${interval(run.interval)}`)), difference(row.difference))));
  byId("scores").append(
    make("thead", {}, make("tr", {}, head("benchmark"), head("subset"), head("score"), head("items", "number"),
      head("ties", "number"), names.map(name => head(name, "number")), compared)),
    make("tbody", {}, rows));
}

function difference(one) {
  if (!one) return [];
  const sure = one.interval[0] > 0 ? "up" : one.interval[1] < 0 ? "down" : "";
  return [make("td", { class: `number ${sure}` }, `${percent(one.value, "+")} ${interval(one.interval, "+")}`),
    make("td", { class: "number" }, one.p === null ? "" : one.p.toPrecision(2))];
}

function pressed(container, chosen) {
  for (const button of byId(container).children) button.setAttribute("aria-pressed", button.value === chosen);
}

function showBenchmark(number) {
  benchmark = content.benchmarks[number];
  pressed("benchmarks", String(number));
  const { name, revision, split, items, missing_images: missing } = benchmark.source;
  byId("source").textContent = `${benchmark.label}: ${items} items of ${name}${split ? `, split ${split}` : ""}` +
    `${revision ? ` at ${revision}` : ""}${missing ? `; ${missing} left out, since their images are missing` : ""}.`;
  byId("notes").replaceChildren(...benchmark.notes.map(note => make("p", { class: "warning" }, note)));
  byId("filters").hidden = byId("count").hidden = byId("scale").hidden = benchmark.form === null;
  byId("charts").replaceChildren();
  if (benchmark.form === null) return [byId("gallery"), byId("pages")].forEach(part => part.replaceChildren());
  benchmark.spread ??= spreads(benchmark);
  byId("scale").textContent = isRanked(benchmark)
    ? "Places count wrong candidates before the right one, ties among them; a whole bar is the first place."
    : "A bar begins at the item's lowest score by that model; a whole one is the widest spread in any item.";
  if (isCompared) byId("charts").append(scatter(benchmark, names, open));
  byId("charts").append(words(benchmark, isCompared, word => { byId("words").value = word; filter(); }));
  const order = isCompared ? ["won", "lost", "both wrong", "both right"] : ["wrong", "right"];
  const counts = [["all", benchmark.total], ...order.map(name => [name, benchmark.kinds[name] ?? 0]), ["ties", benchmark.ties]];
  byId("kinds").replaceChildren(...counts.map(([name, count]) => make("button",
    { type: "button", value: name, click: () => { kind = name; filter(); } }, `${name} ${count.toLocaleString("en")}`)));
  byId("tag").replaceChildren(option("", "all"), ...benchmark.tags.map((tag, place) => option(place, tag)));
  byId("tag").parentElement.hidden = !benchmark.tags.length;
  byId("order").replaceChildren(...orders().map(([text], place) => option(place, text)));
  clear();
}

/* The widest spread of each model's scores in any item, which a whole bar stands for. */
function spreads(one) {
  return names.map((_, model) => one.items.reduce((widest, item) =>
    Math.max(widest, Math.max(...item.answers[model]) - Math.min(...item.answers[model])), 0) || 1);
}

function orders() {
  const by = (text, value) => [text, (a, b) => value(b) - value(a)];
  const change = item => item.margins[1] - item.margins[0];
  const of = place => [by(`margin of ${names[place]}, lowest first`, item => -item.margins[place]),
    by(`margin of ${names[place]}, highest first`, item => item.margins[place])];
  const kept = ["as in the benchmark", () => 0];
  if (!isCompared) return [...of(0), kept];
  return [by("change of margin, largest first", item => Math.abs(change(item))), by("change, rises first", change),
    by("change, falls first", item => -change(item)), ...of(0), ...of(1), kept];
}

const isRight = (item, model) => isRanked(benchmark) ? item.margins[model] === 0 : item.margins[model] > 0;

function filter() {
  pressed("kinds", kind);
  const tag = byId("tag").value, model = byId("model").value;
  const sought = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = item =>
    (kind === "all" || (kind === "ties" ? item.tied.includes(true) : item.kind === kind)) &&
    (tag === "" || item.tags.includes(Number(tag))) &&
    (model === "" || isRight(item, Number(model[1])) === (model[0] === "r")) &&
    sought.every(word => (item.text ??= item.captions.join(" ").toLowerCase() || tagsOf(item).join(" ").toLowerCase()).includes(word));
  shown = benchmark.items.filter(fits).sort(orders()[byId("order").value][1]);
  byId("count").textContent = `${shown.length.toLocaleString("en")} of ${benchmark.items.length.toLocaleString("en")} items`;
  const kept = new Set(shown);
  document.querySelectorAll("#points circle").forEach((point, index) =>
    point.classList.toggle("off", !kept.has(benchmark.items[index])));
  at = 0;
  showPage();
  mark();
}

function clear() {
  kind = "all";
  for (const name of ["tag", "model", "words"]) byId(name).value = "";
  byId("order").value = "0";
  filter();
}

function showPage() {
  const first = at - at % A_PAGE, last = Math.ceil(shown.length / A_PAGE) - 1;
  byId("gallery").replaceChildren(...shown.slice(first, first + A_PAGE).map((item, place) => card(item, first + place)));
  const turn = (text, page) => make("button", { type: "button", disabled: page < 0 || page > last || page * A_PAGE === first,
    click: () => { go(page * A_PAGE); } }, text);
  const page = first / A_PAGE;
  byId("pages").replaceChildren(...last > 0 ? [turn("First", 0), turn("Previous", page - 1),
    make("span", { class: "note" }, `page ${page + 1} of ${last + 1}`), turn("Next", page + 1), turn("Last", last)] : []);
}

const tagsOf = item => item.tags.map(place => benchmark.tags[place]);

function card(item, place) {
  const ties = names.filter((_, model) => item.tied[model]);
  const margins = item.margins.map(margin => isRanked(benchmark) ? `place ${1 - margin}` : number(margin)).join(" → ");
  return make("article", { class: "item", tabindex: -1, "data-place": place, "aria-label": `Item ${item.id}, ${item.kind}`,
    click: () => { at = place; mark(); } },
    make("header", {}, make("b", {}, item.id), make("span", { class: `chip kind ${slug(item.kind)}` }, item.kind),
      ties.map(name => make("span", { class: "chip tie" }, isCompared ? `tie: ${name}` : "tie")),
      tagsOf(item).map(tag => make("span", { class: "chip" }, tag)),
      make("span", { class: "margins" }, `${isRanked(benchmark) ? "" : "margin "}${margins}`)),
    item.pictures.some(picture => picture !== null)
      ? make("div", { class: "shown" }, item.pictures.map((picture, number) => figure(item, picture, number))) : null,
    lines(item));
}

function figure(item, picture, number) {
  if (picture === null) return make("figure", {}, "no picture");
  const own = item.captions[number] ?? item.captions[0] ?? tagsOf(item)[0] ?? "";
  const several = item.pictures.length > 1;
  return make("figure", {}, make("img", { src: thumbnail(picture), alt: `Picture${several ? ` ${number + 1}` : ""}: ${own}` }),
    several ? make("figcaption", {}, `picture ${number + 1}`) : null);
}

/* An item's captions, each with both models' scores of it. */
function lines(item) {
  const values = place => names.map((_, model) => item.answers[model][place]);
  const line = (text, isTrue, ...of) => make("div", { class: `caption ${isTrue ? "true" : ""}` },
    text, isTrue ? make("span", { class: "note" }, " ✓") : "", of);
  if (benchmark.form === "class") return line(tagsOf(item)[0], true, bars(item, "", values(0)));
  if (benchmark.form === "pairs") {
    return item.captions.map((caption, place) => line(`${"AB"[place]}  ${caption}`, false,
      [0, 1].map(picture => bars(item, `picture ${picture + 1}${picture === place ? " ✓" : ""}`, values(2 * place + picture)))));
  }
  if (benchmark.form === "choice" && item.captions.length === 1) {
    return [line(item.captions[0], false,
      item.answers[0].map((_, picture) => bars(item, `picture ${picture + 1}${picture ? "" : " ✓"}`, values(picture))))];
  }
  const areTrue = { choice: 1, triplet: 2 }[benchmark.form];
  const all = areTrue
    ? item.captions.map((caption, place) => line(caption, place < areTrue, bars(item, "", values(place))))
    : [line("Its best caption among all captions", true, bars(item, "", values(0))),
      ...item.captions.map((caption, place) => line(caption, false, bars(item, "its picture", values(place + 1))))];
  if (all.length <= CAPTIONS) return all;
  return [...all.slice(0, CAPTIONS - 1),
    make("details", {}, make("summary", {}, `${all.length - CAPTIONS + 1} more captions`), all.slice(CAPTIONS - 1))];
}

function bars(item, which, values) {
  const of = (value, model) => {
    const lowest = Math.min(...item.answers[model]);
    const share = isRanked(benchmark) ? 1 / (1 + value) : (value - lowest) / benchmark.spread[model];
    const inner = make("i", { class: `m${model}` });
    inner.style.width = `${Math.max(2, 100 * share).toFixed(1)}%`;
    return [make("div", { class: "bar", "aria-hidden": "true" }, inner),
      make("span", {}, make("span", { class: "reader" }, `${names[model]}: `), isRanked(benchmark) ? `place ${value + 1}` : number(value))];
  };
  return make("div", { class: `bars ${isCompared ? "" : "single"}` }, make("span", { class: "which" }, which), values.map(of));
}

/* Move to a place among the items that are shown, turning the page if need be. */
function go(place) {
  if (!shown.length) return;
  const before = at - at % A_PAGE;
  at = Math.max(0, Math.min(shown.length - 1, place));
  if (at - at % A_PAGE !== before) showPage();
  mark();
  const current = document.querySelector(".item.current");
  current.focus({ preventScroll: true });
  current.scrollIntoView({ block: "nearest" });
}

const open = index => go(shown.indexOf(benchmark.items[index]));

function mark() {
  document.querySelectorAll(".current").forEach(one => one.classList.remove("current"));
  document.querySelector(`.item[data-place="${at}"]`)?.classList.add("current");
  const index = benchmark.items.indexOf(shown[at]);
  document.querySelector(`#points [data-index="${index}"]`)?.classList.add("current");
}

const KEYS = { j: () => go(at + 1), ArrowRight: () => go(at + 1), k: () => go(at - 1), ArrowLeft: () => go(at - 1),
  "/": () => byId("words").focus() };

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || benchmark.form === null) return;
  if (event.key === "Escape") { clear(); document.activeElement.blur(); return; }
  if (event.target.closest("input, select, .wide") || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
for (const name of ["tag", "model", "order"]) byId(name).addEventListener("change", filter);
byId("words").addEventListener("input", filter);
byId("model").append(option("", "any"), ...names.flatMap((name, place) =>
  [option(`r${place}`, `${name} right`), option(`w${place}`, `${name} wrong`)]));
byId("benchmarks").append(...content.benchmarks.map((one, place) =>
  make("button", { type: "button", value: String(place), click: () => showBenchmark(place) }, one.label)));
byId("benchmarks").hidden = content.benchmarks.length < 2;
showHead();
showScores();
showBenchmark(0);
