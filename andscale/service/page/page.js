// The page of the neighbourhood service. The address's hash is the whole state: #/VIEW[/ID]?query.
// Whatever comes from data (keys, classes, sources) is put into the page as text nodes and attributes only.

const PAGE_SIZE = 60;
const NEIGHBOURS_SHOWN = 12; // until another number is chosen
const TRAIL_LENGTH = 12;
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const date = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
const decimal = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "–");

let route = null; // what the address asks for
let shown = null; // the stats of the round that is on the screen
let rounds = null; // the answer of /v1/rounds
let stale = false; // after a problem stats and rounds are asked for again
let turn = 0; // number of the newest drawing; an older one that ends later is dropped
let stopper = new AbortController(); // ends the requests of the view that was left
let samplesHash = "#/"; // the list that a walk began from
const statistics = new Map(); // asked round ("" is the current one) -> stats
const known = new Map(); // sample id -> sample, for the trail
const images = []; // images that were dropped, chosen or pasted: {file, key, answer}

// ---- elements

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function shape(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Text from data on one line, cut by the style sheet, whole in its title. */
function cut(text, kind = "") {
  return el("span", { class: `cut ${kind}`, title: text, dir: "auto" }, text);
}

/** The same for a key: its middle is cut, since keys are told apart by their ends. */
function cutMiddle(text, kind = "") {
  const characters = Array.from(text);
  if (characters.length < 14) return cut(text, kind);
  const [head, tail] = [characters.slice(0, -9).join(""), characters.slice(-9).join("")];
  return el("span", { class: `cut middle ${kind}`, title: text, dir: "auto" }, el("span", {}, head), el("span", {}, tail));
}

function short(text, length = 60) {
  const characters = Array.from(text.replace(/\s+/g, " "));
  return characters.length > length ? `${characters.slice(0, length - 1).join("")}…` : characters.join("");
}

function className(sample) {
  return sample.class ?? (sample.label === null || sample.label === undefined ? null : String(sample.label));
}

// ---- the service

class Problem extends Error {
  constructor(title, detail, status = 0) {
    super(detail || title);
    Object.assign(this, { title, detail, status });
  }
}

let token = null;
let tokenAsked = null;

function startToken() {
  const address = new URL(location.href);
  const given = address.searchParams.get("token");
  try {
    if (given) sessionStorage.setItem("token", given);
    token = sessionStorage.getItem("token");
  } catch {
    token = given; // storage is forbidden: the token lives as long as the page
  }
  if (!given) return;
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

function askForToken() {
  tokenAsked ??= new Promise((resolve, reject) => {
    const dialog = $("token");
    const text = "It was set when the service was started. It is kept until this tab is closed.";
    $("token-text").textContent = token ? "The token was refused. Is it the one that the service was started with?" : text;
    $("token-value").value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        tokenAsked = null;
        if (!$("token-value").value || dialog.returnValue !== "use") {
          reject(new Problem("This service needs a token", "Nothing can be shown without it.", 401));
          return;
        }
        token = $("token-value").value;
        $("token-value").value = "";
        try {
          sessionStorage.setItem("token", token);
        } catch {
          // storage is forbidden: asked again after a reload
        }
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return tokenAsked;
}

async function request(path, query = {}, options = {}) {
  const address = new URL(`v1/${path}`, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") address.searchParams.set(name, value);
  }
  const sent = token;
  const headers = { ...options.headers, ...(sent ? { Authorization: `Bearer ${sent}` } : {}) };
  let answer;
  try {
    answer = await fetch(address, { signal: stopper.signal, ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer", "It may have been stopped, or the connection is gone.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    if (sent === token) await askForToken();
    return request(path, query, options);
  }
  const problem = await answer.json().catch(() => ({}));
  const detail = typeof problem.detail === "string" ? problem.detail : `The service answered ${answer.status}.`;
  throw new Problem(typeof problem.title === "string" ? problem.title : "This did not work", detail, answer.status);
}

async function ask(path, query, options) {
  const answer = await request(path, query, options);
  return answer.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service's answer cannot be read", "It is not JSON.");
  });
}

async function statsOf(round) {
  if (!statistics.has(round)) statistics.set(round, await ask("stats", { round }));
  return statistics.get(round);
}

// ---- addresses

function routeOf(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [view, id = ""] = path.split("/");
  const values = new URLSearchParams(query);
  return {
    view: view || "samples",
    id: /^\d+$/.test(id) ? Number(id) : null,
    values,
    k: /^\d+$/.test(values.get("k") ?? "") ? Number(values.get("k")) : null,
    round: /^\d+$/.test(values.get("round") ?? "") ? values.get("round") : "",
  };
}

/** The hash of a view; k and the round go along unless they are given. */
function hashOf(path, values = {}) {
  const query = new URLSearchParams();
  const all = { ...values };
  if (!("k" in all)) all.k = route.k;
  if (!("round" in all)) all.round = route.round;
  for (const [name, value] of Object.entries(all)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  const text = query.toString().replaceAll("%2C", ",");
  return `#/${path}${text ? `?${text}` : ""}`;
}

function go(hash, replace = false) {
  if (hash === location.hash) show();
  else if (replace) {
    history.replaceState(null, "", hash);
    show();
  } else location.hash = hash;
}

function here(changes) {
  const path = location.hash.replace(/^#\/?/, "").split("?")[0];
  return hashOf(path, { ...Object.fromEntries(route.values), ...changes });
}

const stepOf = () => (route.view === "image" ? `i${route.id}` : String(route.id));
const trail = () => (route.values.get("via") ?? "").split(",").filter((step) => /^i?\d+$/.test(step));
const hashOfStep = (step, via) => hashOf(step[0] === "i" ? `image/${step.slice(1)}` : `sample/${step}`, { via: via.join(",") });

/** Where a neighbour leads to: the trail grows, or is cut where it has been there already. */
function hashOfWalk(id) {
  const walked = [...trail(), stepOf()];
  const before = walked.indexOf(String(id));
  return hashOfStep(String(id), (before < 0 ? walked : walked.slice(0, before)).slice(-TRAIL_LENGTH));
}

// ---- pictures and tiles

function missing(id) {
  return el("div", { class: "picture missing" }, `#${id}`);
}

function fitted(image, box, id) {
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 64), { once: true });
  image.addEventListener("error", () => box.replaceWith(missing(id)), { once: true });
}

async function loadBlob(image, path, query) {
  try {
    const address = URL.createObjectURL(await (await request(path, query)).blob());
    for (const event of ["load", "error"]) image.addEventListener(event, () => URL.revokeObjectURL(address), { once: true });
    image.src = address;
  } catch (error) {
    if (error.name !== "AbortError") image.dispatchEvent(new Event("error"));
  }
}

function picture(sample, size = 128, round = route.round) {
  if (!sample.has_image) return missing(sample.sample_id);
  const image = el("img", { alt: `Image of sample ${sample.sample_id}`, loading: "lazy", decoding: "async", draggable: "false" });
  const box = el("div", { class: "picture" }, image);
  fitted(image, box, sample.sample_id);
  const path = `samples/${sample.sample_id}/thumbnail`;
  if (token) loadBlob(image, path, { size, round });
  else image.src = `v1/${path}?size=${size}${round ? `&round=${round}` : ""}`;
  return box;
}

function ownPicture(number) {
  const image = el("img", { alt: "Your image" });
  const address = URL.createObjectURL(images[number - 1].file);
  for (const event of ["load", "error"]) image.addEventListener(event, () => URL.revokeObjectURL(address), { once: true });
  const box = el("div", { class: "picture" }, image);
  fitted(image, box, "image");
  image.src = address;
  return box;
}

function classBadge(sample, focal) {
  const name = className(sample);
  if (!shown.has_classes || name === null) return null;
  const other = focal ? className(focal) : null;
  if (other === null) return cut(name, "badge");
  return name === other ? cut(`= ${name}`, "badge same") : cut(`≠ ${name}`, "badge other");
}

/** A tile of the grid; extra: {href, focal, note, kind, round}. */
function tile(sample, extra) {
  known.set(sample.sample_id, sample);
  const value = "similarity" in sample ? decimal(sample.similarity) : `H ${decimal(sample.entropy, 2)}`;
  const meaning = "similarity" in sample ? "cosine similarity" : "entropy in nats";
  const badge = classBadge(sample, extra.focal);
  const anchor = sample.is_anchor ? el("span", { class: "anchor", title: "anchor" }, el("span", { class: "unseen" }, "anchor")) : null;
  const lines = el(
    "div",
    { class: "lines" },
    el("div", { class: "line" }, el("span", {}, `#${sample.sample_id}`), anchor, el("span", { class: "quiet", title: meaning }, value)),
    sample.key || sample.source ? el("div", { class: "line" }, cutMiddle(sample.key || sample.source, "quiet")) : null,
    badge ? el("div", { class: "line" }, badge) : null,
    extra.note ? el("div", { class: "line" }, extra.note) : null,
  );
  const link = el("a", { class: `tile ${extra.kind ?? ""}`, href: extra.href, "data-id": sample.sample_id, draggable: "false" });
  link.append(picture(sample, 128, extra.round), lines);
  return el("li", {}, link);
}

function fill(grid, tiles, empty) {
  grid.replaceChildren(...(tiles.length ? tiles : [el("li", { class: "empty" }, empty)]));
}

// ---- the histogram

function histogram(entropy, label, range = null, marker = null) {
  const bins = entropy.counts.length;
  const highest = Math.max(1, ...entropy.counts);
  const svg = shape("svg", { viewBox: `0 0 ${bins} 100`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const tall = (count) => (count ? Math.max(1.5, (100 * count) / highest) : 0);
  if (range && range[1] - range[0] < bins) {
    svg.append(shape("rect", { class: "chosen", x: range[0], y: 0, width: range[1] - range[0], height: 100 }));
  }
  entropy.counts.forEach((count, i) => {
    const outside = range && (i < range[0] || i >= range[1]) ? " outside" : "";
    for (const [kind, height] of [["all", tall(count)], ["anchors", tall(entropy.anchors[i])]]) {
      svg.append(shape("rect", { class: kind + outside, x: i + 0.06, width: 0.88, y: 100 - height, height }));
    }
  });
  if (marker !== null) {
    const [low, high] = [entropy.edges[0], entropy.edges[bins]];
    const x = high > low ? (bins * (marker - low)) / (high - low) : 0;
    svg.append(shape("line", { class: "marker", x1: x, x2: x, y1: -6, y2: 100 }));
  }
  return svg;
}

const chosenBins = () => [Number($("from").value), Number($("to").value)];

function drawRange() {
  const { edges, counts } = shown.entropy;
  const [from, to] = chosenBins();
  const inside = counts.slice(from, to).reduce((sum, count) => sum + count, 0);
  const text = `${decimal(edges[from], 2)} to ${decimal(edges[to], 2)} nats, ${number.format(inside)} samples`;
  $("range-text").textContent = text;
  $("whole").hidden = from === 0 && to === counts.length;
  $("from").setAttribute("aria-valuetext", `${decimal(edges[from], 2)} nats`);
  $("to").setAttribute("aria-valuetext", `${decimal(edges[to], 2)} nats`);
  $("brush").replaceChildren(histogram(shown.entropy, `Histogram of the entropies, ${text} chosen`, [from, to]));
}

function setBins(from, to) {
  $("from").value = from;
  $("to").value = to;
  drawRange();
}

function goToRange(replace) {
  const { edges, counts } = shown.entropy;
  const [from, to] = chosenBins();
  const min = from === 0 ? null : edges[from];
  const max = to === counts.length ? null : edges[to];
  go(here({ min, max, offset: null }), replace);
}

function nearestEdge(value, fallback) {
  if (value === null || value === "" || !Number.isFinite(Number(value))) return fallback;
  const far = shown.entropy.edges.map((edge) => Math.abs(edge - Number(value)));
  return far.indexOf(Math.min(...far));
}

function startBrush() {
  const brush = $("brush");
  let start = null;
  const binAt = (event) => {
    const box = brush.getBoundingClientRect();
    const bins = shown.entropy.counts.length;
    return Math.max(0, Math.min(bins - 1, Math.floor((bins * (event.clientX - box.left)) / box.width)));
  };
  const stretch = (event) => setBins(Math.min(start, binAt(event)), Math.max(start, binAt(event)) + 1);
  brush.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !shown) return;
    brush.setPointerCapture(event.pointerId);
    start = binAt(event);
    stretch(event);
  });
  brush.addEventListener("pointermove", (event) => start !== null && stretch(event));
  brush.addEventListener("pointerup", (event) => {
    if (start === null) return;
    stretch(event);
    start = null;
    goToRange(false);
  });
  brush.addEventListener("pointercancel", () => {
    start = null;
    show();
  });
  for (const [slider, other, side] of [["from", "to", -1], ["to", "from", 1]]) {
    $(slider).addEventListener("input", () => {
      const limit = Number($(other).value);
      if (side * (Number($(slider).value) - limit) < 1) $(slider).value = limit + side; // at least one bin stays
      drawRange();
    });
    $(slider).addEventListener("change", () => goToRange(true));
  }
  $("whole").addEventListener("click", () => {
    setBins(0, shown.entropy.counts.length);
    goToRange(false);
    $("from").focus({ preventScroll: true });
  });
}

// ---- views: what each asks for (the answers' rounds are compared with that of the stats) and draws

const offsetOf = () => Math.max(0, Number(route.values.get("offset")) || 0);
const isOlder = (round) => Boolean(round) && round !== String(rounds.current);

/** Images need the round's index (an older one's is not open: its stats have no dim) and model. */
const takesImages = (stats) => stats.has_model && Boolean(stats.dim);
const NO_IMAGES = "Images can be searched only in a round whose model and index are there.";

/** k; without an index the table alone answers, so no more than it holds. */
function neighboursWanted(stats, tableOnly = !stats.dim || isOlder(route.round)) {
  const most = tableOnly ? Math.min(stats.num_neighbours, stats.limits.k) : stats.limits.k;
  return Math.max(1, Math.min(route.k ?? NEIGHBOURS_SHOWN, most, stats.num_samples - 1));
}

/** Where neighbours come from; a table may be approximate, and an old one does not say. */
function originOf(near) {
  if (near.source === "index") return "from the table and the index";
  const { mode, recall_at_k: recall } = shown.table;
  if (mode === "exact") return "from the table, exact";
  if (mode !== "approximate") return "from the table";
  return `from the table, approximate${Number.isFinite(recall) ? ` (recall ${percent(recall)})` : ""}`;
}

const views = {
  samples: {
    load(stats) {
      const values = route.values;
      return Promise.all([
        ask("samples", {
          round: route.round,
          key: values.get("key"),
          class: values.get("class"),
          entropy_min: values.get("min"),
          entropy_max: values.get("max"),
          anchor: values.get("anchor"),
          limit: PAGE_SIZE,
          offset: offsetOf(),
        }),
      ]);
    },
    draw([answer]) {
      samplesHash = location.hash || "#/";
      const { edges, counts } = shown.entropy;
      for (const slider of ["from", "to"]) $(slider).max = counts.length;
      setBins(nearestEdge(route.values.get("min"), 0), nearestEdge(route.values.get("max"), counts.length));
      $("lowest").textContent = decimal(edges[0], 2);
      $("highest").textContent = decimal(edges[counts.length], 2);
      if (document.activeElement !== $("filter-key")) $("filter-key").value = route.values.get("key") ?? "";
      drawClasses(route.values.get("class") ?? "");
      $("filter-anchor").value = route.values.get("anchor") ?? "";
      const tiles = answer.samples.map((sample) => tile(sample, { href: hashOf(`sample/${sample.sample_id}`) }));
      fill($("samples-grid"), tiles, "No sample is like that.");
      $("samples-count").textContent = `${number.format(answer.total)} of ${number.format(shown.num_samples)}`;
      drawPages(answer.total);
      return { title: "Samples", say: `${number.format(answer.total)} samples` };
    },
  },

  sample: {
    load(stats) {
      if (route.id === null) throw new Problem("There is no such page", "A sample's address is #/sample/ and its number.");
      const query = { round: route.round, k: neighboursWanted(stats) };
      return Promise.all([ask(`neighbours/${route.id}`, query), ask(`samples/${route.id}`, { round: route.round })]);
    },
    draw([near, detail]) {
      const sample = near.sample;
      known.set(sample.sample_id, sample);
      $("portrait").replaceChildren(picture(sample, 512));
      $("sample-title").textContent = `Sample ${sample.sample_id}`;
      drawFacts(sample, detail, near.neighbours);
      drawNeighbours(near.neighbours, sample, originOf(near));
      $("to-compare").hidden = rounds.rounds.length < 2;
      $("to-compare").href = hashOf("rounds", { id: sample.sample_id, round: null });
      return { title: `Sample ${sample.sample_id}`, say: `Sample ${sample.sample_id}, ${near.neighbours.length} neighbours` };
    },
  },

  image: {
    async load(stats) {
      const image = images[route.id - 1];
      if (!image) throw new Problem("The image is gone", "It was never stored: drop, choose or paste it again.");
      if (!takesImages(stats)) throw new Problem("Images cannot be searched here", NO_IMAGES);
      const k = neighboursWanted(stats);
      const key = `${stats.round} ${k}`;
      if (image.key !== key) {
        const headers = { "Content-Type": image.file.type };
        const query = { k, round: route.round };
        image.answer = await ask("search", query, { method: "POST", body: image.file, headers });
        image.key = `${image.answer.round} ${k}`;
      }
      return [image.answer];
    },
    draw([answer]) {
      const neighbours = answer.results[0].neighbours;
      const name = images[route.id - 1].file.name || "pasted image";
      $("portrait").replaceChildren(ownPicture(route.id));
      $("sample-title").textContent = "Your image";
      $("sample-facts").replaceChildren(el("dt", {}, "File"), el("dd", { class: "cut", title: name, dir: "auto" }, name));
      $("place").hidden = true;
      $("to-compare").hidden = true;
      drawNeighbours(neighbours, null, `embedded by the model of round ${answer.round}`);
      return { title: "Your image", say: `${neighbours.length} neighbours of your image` };
    },
  },

  rounds: {
    async load(stats) {
      const [a, b] = comparedRounds();
      const id = route.values.get("id");
      if (!/^\d+$/.test(id ?? "")) return [];
      const held = rounds.rounds.filter((each) => [a, b].includes(String(each.round))).map((each) => each.num_neighbours);
      const k = Math.min(neighboursWanted(stats, true), ...held);
      const both = await Promise.all([a, b].map((round) => ask(`neighbours/${id}`, { round, k })));
      both.forEach((side, i) => {
        if (String(side.round) !== [a, b][i]) throw new Problem("The rounds are mixed", "Another round answered; try again.");
      });
      return both.map((side) => ({ ...side, compared: true }));
    },
    draw(both) {
      drawRoundsTable();
      const list = rounds.rounds.map((each) => [String(each.round), `Round ${each.round}`]);
      const compared = comparedRounds();
      options($("compare-a"), list, compared[0]);
      options($("compare-b"), list, compared[1]);
      $("compare-id").value = route.values.get("id") ?? "";
      $("compared").hidden = !both.length;
      if (!both.length) return { title: "Rounds", say: `${rounds.rounds.length} rounds` };
      return drawCompared(both);
    },
  },

  purity: {
    load: async () => [],
    draw() {
      const purity = shown.purity;
      $("no-purity").hidden = purity !== null;
      $("purity-figures").hidden = $("purity-scroll").hidden = purity === null;
      if (purity) drawPurity(purity);
      return { title: "Purity", say: purity ? `Purity of ${purity.by_class.length} classes` : "No purity" };
    },
  },
};

function options(select, list, value) {
  select.replaceChildren(...list.map(([each, text]) => el("option", { value: each, title: text }, short(text))));
  select.value = value;
}

function drawClasses(value) {
  $("filter-class-label").hidden = !shown.has_classes;
  const list = [["", "all"], ...shown.classes.map((name) => [name, name])];
  if (value && !shown.classes.includes(value)) list.push([value, value]);
  options($("filter-class"), list, value);
}

function drawPages(total) {
  const offset = offsetOf();
  const step = (to, text, rel) => el("a", { class: "button", href: here({ offset: to || null }), rel }, text);
  const parts = [];
  if (offset > 0) parts.push(step(Math.max(0, offset - PAGE_SIZE), "Previous", "prev"));
  if (total > PAGE_SIZE) {
    parts.push(el("span", {}, `${number.format(offset + 1)}–${number.format(Math.min(total, offset + PAGE_SIZE))} of ${number.format(total)}`));
  }
  if (offset + PAGE_SIZE < total) parts.push(step(offset + PAGE_SIZE, "Next", "next"));
  $("pages").replaceChildren(...parts);
  $("pages").hidden = !parts.length;
}

function drawFacts(sample, detail, neighbours) {
  const facts = [];
  const name = className(sample);
  if (shown.has_classes && name !== null) facts.push(["Class", el("a", { class: "cut", title: name, dir: "auto", href: hashOf("", { class: name }) }, name)]);
  if (sample.key) facts.push(["Key", cutMiddle(sample.key)]);
  if (sample.source) facts.push(["Source", cutMiddle(sample.source)]);
  facts.push(["Entropy", `${decimal(sample.entropy)} nats`]);
  facts.push(["Role", sample.is_anchor ? el("span", { class: "anchor" }, "anchor") : "instance"]);
  if (Number.isFinite(detail.k_occurrence)) {
    facts.push(["Neighbour of", `${number.format(detail.k_occurrence)} ${detail.k_occurrence === 1 ? "sample" : "samples"}`]);
  }
  const others = neighbours.map(className).filter((each) => each !== null); // where labels are missing, of those that have one
  if (shown.has_classes && name !== null && others.length) {
    const same = others.filter((each) => each === name).length;
    facts.push(["Same class", `${same} of ${others.length}`]);
  }
  const rows = facts.flatMap(([term, value]) => [el("dt", {}, term), el("dd", { class: "line" }, value)]);
  $("sample-facts").replaceChildren(...rows);
  $("place").hidden = false;
  const label = `Entropy ${decimal(sample.entropy)} among those of all samples`;
  $("place").firstElementChild.replaceChildren(histogram(shown.entropy, label, null, sample.entropy));
}

function drawNeighbours(neighbours, focal, how) {
  $("neighbours-text").textContent = `${neighbours.length} nearest, ${how}`;
  const tiles = neighbours.map((each) => tile(each, { focal, href: hashOfWalk(each.sample_id) }));
  fill($("neighbours-grid"), tiles, "It has no neighbours.");
  drawTrail();
}

function drawTrail() {
  const steps = [...trail(), stepOf()];
  const items = steps.map((step, i) => {
    const last = i === steps.length - 1;
    const own = step[0] === "i";
    const sample = known.get(Number(step)) ?? { sample_id: Number(step), has_image: shown.has_images };
    const small = own ? (images[step.slice(1) - 1] ? ownPicture(Number(step.slice(1))) : null) : picture(sample, 32);
    small?.setAttribute("aria-hidden", "true");
    const content = [small, own ? "image" : `#${step}`];
    const link = last ? el("span", { "aria-current": "page" }, ...content) : el("a", { href: hashOfStep(step, steps.slice(0, i)) }, ...content);
    return el("li", {}, link);
  });
  $("trail").firstElementChild.replaceChildren(el("li", {}, el("a", { href: samplesHash }, "Samples")), ...items);
}

function comparedRounds() {
  const numbers = rounds.rounds.map((each) => String(each.round));
  const known = (name, otherwise) => (numbers.includes(route.values.get(name)) ? route.values.get(name) : otherwise);
  const last = numbers.includes(String(rounds.current)) ? numbers.indexOf(String(rounds.current)) : numbers.length - 1;
  return [known("a", numbers[Math.max(0, last - 1)]), known("b", numbers[last])];
}

function drawRoundsTable() {
  const rows = rounds.rounds.map((each) => {
    const made = new Date(each.created);
    const cells = [each.num_samples, each.num_neighbours, each.num_anchors].map((value) => el("td", {}, number.format(value)));
    const current = each.round === rounds.current;
    const link = el("a", { href: hashOf("", { round: current ? null : each.round }) }, `${each.round}${current ? " (current)" : ""}`);
    return el("tr", {}, el("th", { scope: "row" }, link), ...cells, el("td", {}, Number.isNaN(made.getTime()) ? "–" : date.format(made)));
  });
  $("rounds-table").tBodies[0].replaceChildren(...rows);
}

function drawCompared(both) {
  const [a, b] = both;
  const id = a.sample.sample_id;
  const ids = both.map((side) => side.neighbours.map((each) => each.sample_id));
  const stayed = ids[0].filter((each) => ids[1].includes(each)).length;
  const link = el("a", { href: hashOf(`sample/${id}`) }, `Sample ${id}`);
  const shift = b.sample.entropy - a.sample.entropy;
  const summary = `${stayed} stayed, ${ids[0].length - stayed} left, ${ids[1].length - stayed} came · entropy ${shift < 0 ? "−" : "+"}${decimal(Math.abs(shift))}`;
  const lines = el("div", {}, el("p", {}, link), b.sample.key ? el("p", { class: "line" }, cutMiddle(b.sample.key, "quiet")) : null);
  lines.append(el("p", {}, summary));
  $("compared-sample").replaceChildren(picture(b.sample, 128, b.round), lines);
  both.forEach((side, i) => {
    const other = ids[1 - i];
    const box = $(i ? "side-b-title" : "side-a-title").parentElement;
    box.querySelector("h3").textContent = `Round ${side.round}`;
    box.querySelector("p").textContent = `entropy ${decimal(side.sample.entropy)}${side.sample.is_anchor ? ", anchor" : ""}`;
    const tiles = side.neighbours.map((each, rank) => {
      const there = other.indexOf(each.sample_id);
      const word = i ? el("b", { class: "same" }, "came") : el("b", { class: "other" }, "left");
      const moved = i ? `${there + 1} → ${rank + 1}` : `${rank + 1} → ${there + 1}`;
      return tile(each, {
        focal: side.sample,
        href: here({ id: each.sample_id }),
        kind: there >= 0 ? "" : i ? "new" : "gone",
        note: there >= 0 ? el("span", { class: "quiet", title: "rank in the left and in the right round" }, rank === there ? "same rank" : moved) : word,
        round: side.round,
      });
    });
    fill(box.querySelector("ul"), tiles, "It has no neighbours.");
  });
  return { title: `Sample ${id} in rounds ${a.round} and ${b.round}`, say: `Sample ${id}: ${summary}` };
}

function drawPurity(purity) {
  const k = shown.num_neighbours;
  const figures = [
    [purity.at_1, "all, @1"],
    [purity.at_k, `all, @${k}`],
    [purity.anchors_at_1, "anchors, @1"],
    [purity.anchors_at_k, `anchors, @${k}`],
  ];
  const distinct = k === 1 ? figures.filter((_, i) => i % 2 === 0) : figures; // @k is @1 then
  $("purity-table").classList.toggle("one", k === 1);
  $("purity-figures").replaceChildren(...distinct.map(([value, text]) => el("li", {}, el("b", {}, percent(value)), text)));
  $("at-k").textContent = `@${k}`;
  const sort = ["class", "num_samples", "at_1", "at_k"].includes(route.values.get("sort")) ? route.values.get("sort") : k === 1 ? "at_1" : "at_k";
  const down = route.values.get("down") === "1" ? -1 : 1;
  for (const button of document.querySelectorAll("[data-sort]")) {
    const chosen = button.dataset.sort === sort;
    if (chosen) button.parentElement.setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
    else button.parentElement.removeAttribute("aria-sort");
  }
  const order = (x, y) => (typeof x === "number" || typeof y === "number" ? (x ?? -1) - (y ?? -1) : String(x).localeCompare(String(y), "en", { numeric: true }));
  const value = (each) => (sort === "class" ? className(each) : each[sort]);
  const rows = [...purity.by_class].sort((x, y) => down * order(value(x), value(y))).map(purityRow);
  $("purity-table").tBodies[0].replaceChildren(...rows);
}

function purityRow(each) {
  const name = className(each);
  const share = (value) => {
    const bar = el("i", { "aria-hidden": "true" });
    bar.style.setProperty("--share", Number.isFinite(value) ? value : 0);
    return el("td", {}, el("span", { class: "share" }, bar, el("span", {}, percent(value))));
  };
  const link = el("a", { href: hashOf("", { class: name }), title: name, dir: "auto" }, name);
  return el("tr", {}, el("th", { scope: "row" }, link), el("td", {}, number.format(each.num_samples)), share(each.at_1), share(each.at_k));
}

// ---- drawing a view

function notice(text) {
  $("notice").firstElementChild.textContent = text;
  $("notice").hidden = !text;
}

/** Stats, rounds and the view's answers, all of one round; asked again when a swap came in between. */
async function gather(view) {
  const before = rounds?.current;
  if (stale) forget();
  for (let attempt = 0; ; attempt += 1) {
    const stats = await statsOf(route.round);
    rounds ??= await ask("rounds");
    const answers = await view.load(stats);
    const same = answers.every((answer) => answer.compared || answer.round === stats.round);
    if (same && (route.round || stats.round === rounds.current)) {
      return { stats, answers, swapped: before !== undefined && before !== rounds.current };
    }
    if (attempt === 5) throw new Problem("The rounds change too fast", "No two answers were from the same round; try again.");
    forget();
  }
}

function forget() {
  statistics.clear();
  rounds = null;
  stale = false;
}

function drawFrame(name) {
  const active = name === "image" ? "sample" : name;
  for (const section of document.querySelectorAll("section[data-view]")) section.hidden = section.id !== active;
  $("first").hidden = true;
  $("problem").hidden = true;
  if (!shown || !rounds) return;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === active || (active === "sample" && link.dataset.view === "samples")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    link.href = hashOf(link.dataset.view === "samples" ? "" : link.dataset.view);
  }
  document.querySelector('[data-view="purity"]').hidden = shown.purity === null;
  $("name").textContent = shown.name || "Neighbourhoods";
  $("name").title = shown.name || "Neighbourhoods";
  $("name").href = hashOf("");
  const facts = [
    `${number.format(shown.num_samples)} samples`,
    `${number.format(shown.num_anchors)} anchors`,
    shown.dim ? `${shown.dim} dimensions` : null,
    shown.index_kind,
  ];
  $("facts").textContent = facts.filter(Boolean).join(" · ");
  $("facts").title = $("facts").textContent;
  $("k").max = !shown.dim || isOlder(route.round) ? shown.num_neighbours : shown.limits.k;
  $("k").value = neighboursWanted(shown);
  const list = rounds.rounds.map((each) => String(each.round)).reverse();
  options($("round"), list.map((each) => [each === String(rounds.current) ? "" : each, each === String(rounds.current) ? `${each} (current)` : each]), route.round === String(rounds.current) ? "" : route.round);
  const takes = takesImages(shown);
  $("file").disabled = !takes;
  $("choose").setAttribute("aria-disabled", String(!takes));
  $("choose").title = takes ? "Choose an image; dropping and pasting work too" : NO_IMAGES;
  $("hint").hidden = !takes;
  $("openapi").hidden = token !== null; // a plain link sends no header
}

function drawProblem(error) {
  if (!(error instanceof Problem)) console.error(error);
  stale = true;
  drawFrame("");
  const own = error instanceof Problem;
  $("problem").querySelector("h2").textContent = own ? error.title : "The page failed";
  $("problem").querySelector("p").textContent = error.message;
  $("leave").href = hashOf("", { round: null });
  $("problem").hidden = false;
  document.title = `${$("problem").querySelector("h2").textContent} · Neighbourhoods`;
}

/** Keyboard focus after a walk: on the sample one came back from, else the first tile, else the main part. */
function placeFocus(left, wasInGrid) {
  if (left === null || (!wasInGrid && document.activeElement !== document.body)) return;
  const grid = document.querySelector("section:not([hidden]) .grid");
  const back = left.id !== null ? grid?.querySelector(`[data-id="${left.id}"]`) : null;
  const returned = back && left.view === "sample" && (route.view !== "sample" || trail().length < left.steps);
  const target = returned ? back : ((wasInGrid && grid?.querySelector(".tile")) || $("main"));
  target.focus({ preventScroll: !returned });
}

async function show() {
  const mine = (turn += 1);
  stopper.abort();
  stopper = new AbortController();
  const left = route && { view: route.view, id: route.id, steps: trail().length };
  const wasInGrid = document.activeElement?.closest(".grid") !== null;
  route = routeOf(location.hash);
  const moved = left !== null && (left.view !== route.view || left.id !== route.id);
  document.body.classList.add("busy");
  $("main").setAttribute("aria-busy", "true");
  try {
    const view = Object.hasOwn(views, route.view) ? views[route.view] : null;
    if (!view) throw new Problem("There is no such page", "The address is not one of this page's.");
    const { stats, answers, swapped } = await gather(view);
    if (mine !== turn) return;
    shown = stats;
    drawFrame(route.view);
    const { title, say } = view.draw(answers);
    document.title = `${title} · ${short(shown.name || "Neighbourhoods", 40)}`;
    $("live").textContent = say;
    if (swapped && !route.round) notice(`Round ${shown.round} is now served; this page shows it.`);
    if (moved) scrollTo(0, 0);
    if (moved) placeFocus(left, wasInGrid);
  } catch (error) {
    if (mine !== turn || error.name === "AbortError") return;
    drawProblem(error);
  } finally {
    if (mine === turn) {
      document.body.classList.remove("busy");
      $("main").setAttribute("aria-busy", "false");
    }
  }
}

// ---- search box

let choices = [];
let chosen = -1;

function choicesFor(text) {
  if (!text || !shown) return [];
  const list = [];
  const byClass = (name) => ({ hash: hashOf("", { class: name }), word: "Class", name });
  const low = text.toLowerCase();
  const classes = shown.has_classes ? shown.classes.filter((name) => name.toLowerCase().includes(low)) : [];
  if (/^#?\d{1,15}$/.test(text)) list.push({ hash: hashOf(`sample/${text.replace("#", "")}`), word: "Sample", name: text.replace("#", "") });
  const exact = classes.find((name) => name === text);
  if (exact !== undefined) list.push(byClass(exact));
  list.push({ hash: hashOf("", { key: text }), word: "Key contains", name: text });
  return [...list, ...classes.filter((name) => name !== exact).slice(0, 6).map(byClass)];
}

function drawChoices() {
  const open = choices.length > 0;
  $("options").hidden = !open;
  $("query").setAttribute("aria-expanded", String(open));
  const items = choices.map((choice, i) =>
    el("li", { role: "option", id: `option-${i}`, "aria-selected": String(i === chosen), title: choice.name }, `${choice.word} `, el("b", { dir: "auto" }, short(choice.name, 120))),
  );
  $("options").replaceChildren(...items);
  if (open) $("query").setAttribute("aria-activedescendant", `option-${chosen}`);
  else $("query").removeAttribute("aria-activedescendant");
  items[chosen]?.scrollIntoView({ block: "nearest" });
}

function setChoices(list) {
  choices = list;
  chosen = list.length ? 0 : -1;
  drawChoices();
}

function openChoice(choice) {
  setChoices([]);
  $("query").value = "";
  $("query").blur();
  go(choice.hash);
}

function startSearch() {
  const query = $("query");
  query.addEventListener("input", () => setChoices(choicesFor(query.value.trim())));
  query.addEventListener("focus", () => setChoices(choicesFor(query.value.trim())));
  query.addEventListener("blur", () => setChoices([]));
  query.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (!choices.length) query.value = "";
      setChoices([]);
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && choices.length) {
      chosen = (chosen + (event.key === "ArrowDown" ? 1 : choices.length - 1)) % choices.length;
      drawChoices();
    } else return;
    event.preventDefault();
  });
  $("options").addEventListener("pointerdown", (event) => event.preventDefault()); // the box keeps the focus
  $("options").addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (item) openChoice(choices[[...$("options").children].indexOf(item)]);
  });
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const choice = choices[chosen] ?? choicesFor(query.value.trim())[0];
    if (choice) openChoice(choice);
  });
}

// ---- images: dropped, chosen, pasted

function searchImage(file) {
  if (!shown) return notice("Images can be searched once a round is shown.");
  if (!takesImages(shown)) return notice(NO_IMAGES);
  if (!file || !file.type.startsWith("image/")) return notice("That is not an image.");
  if (file.size > shown.limits.body_bytes) {
    return notice(`That image has ${number.format(file.size)} bytes; the service takes ${number.format(shown.limits.body_bytes)}.`);
  }
  notice("");
  images.push({ file, key: null, answer: null });
  go(hashOf(`image/${images.length}`));
}

function startImages() {
  const dragsFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!dragsFile(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) $("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    $("drop").hidden = true;
    if (!dragsFile(event)) return;
    event.preventDefault();
    searchImage(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    searchImage(file);
  });
  $("file").addEventListener("change", () => {
    if ($("file").files.length) searchImage($("file").files[0]);
    $("file").value = ""; // the same file may be chosen again
  });
}

// ---- keys and controls

/** The tile that an arrow key leads to; up and down go by the column on the screen. */
function tileToward(key, grid, from) {
  const tiles = [...grid.querySelectorAll(".tile")];
  const at = tiles.indexOf(from);
  const columns = tiles.filter((each) => each.offsetTop === tiles[0].offsetTop).length;
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: tiles.length - 1 }[key];
  return tiles[to];
}

function startKeys() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const writing = event.target.closest?.("input, select, textarea, dialog");
    if (event.key === "/" && !writing) {
      event.preventDefault();
      $("query").focus();
      $("query").select();
      return;
    }
    const from = event.target.closest?.(".tile");
    const to = from && tileToward(event.key, from.closest(".grid"), from);
    if (!to) return;
    event.preventDefault();
    to.focus();
  });
}

async function goToRandom() {
  try {
    const { num_samples: total } = await statsOf(route.round);
    const answer = await ask("samples", { round: route.round, limit: 1, offset: Math.floor(Math.random() * total) });
    if (answer.samples.length) go(hashOf(`sample/${answer.samples[0].sample_id}`));
  } catch (error) {
    if (error.name !== "AbortError") drawProblem(error);
  }
}

function startControls() {
  let waiting = null;
  $("filter-key").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => route.view === "samples" && go(here({ key: $("filter-key").value, offset: null }), true), 250);
  });
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  $("filter-class").addEventListener("change", () => go(here({ class: $("filter-class").value, offset: null })));
  $("filter-anchor").addEventListener("change", () => go(here({ anchor: $("filter-anchor").value, offset: null })));
  $("k").addEventListener("change", () => {
    const wanted = Math.round(Number($("k").value)) || 1;
    go(here({ k: Math.max(1, Math.min(shown?.limits.k ?? wanted, wanted)) }), true);
  });
  $("round").addEventListener("change", () => go(here({ round: $("round").value, offset: null })));
  $("random").addEventListener("click", goToRandom);
  $("again").addEventListener("click", show);
  $("skip").addEventListener("click", () => $("main").focus());
  $("notice").lastElementChild.addEventListener("click", () => notice(""));
  $("compare").addEventListener("submit", (event) => {
    event.preventDefault();
    go(hashOf("rounds", { id: $("compare-id").value, a: $("compare-a").value, b: $("compare-b").value }));
  });
  for (const select of ["compare-a", "compare-b"]) $(select).addEventListener("change", () => $("compare-id").value && $("compare").requestSubmit());
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const { sort: by } = button.dataset;
      const current = button.parentElement.getAttribute("aria-sort");
      const down = current ? current === "ascending" : by === "num_samples";
      go(here({ sort: by, down: down ? 1 : null }), true);
    });
  }
}

startToken();
startBrush();
startSearch();
startImages();
startKeys();
startControls();
addEventListener("hashchange", show);
show();
