// A softmax, tile by tile. Every number comes from Python; heights are drawn from the scores.
attncourse.piece("online", (root, data) => {
  const { el, slider, choices } = attncourse;
  const [cell, left, top, base, bar] = data.place;
  const S = data.values.length;
  const at = { ...data.start };
  const find = (name) => root.querySelector(`.ac-${name}`);
  const items = [];

  function draw(scores, step, end) {
    const highest = (n) => Math.max(...scores.slice(0, at.rule === 3 ? step : n));
    const share = (j, n) => Math.exp(scores[j] - (highest(n) > -Infinity ? highest(n) : 0));
    const box = (first, gap) => {
      const width = cell * (Math.min(first + step, S) - first) - 2 * gap;
      return `M${left + cell * first + gap} ${top + gap}h${width}v${cell - 2 * gap}h-${width}z`;
    };
    const paths = { tiles: "", read: "", frame: box(step * at.tile, 1), counts: "", should: "" };
    for (let first = 0; first < S; first += step) {
      paths.tiles += box(first, 1);
      if (first < end) paths.read += box(first, 1);
    }
    for (let j = 0; j < end; j++) {
      const x = left + cell * j;
      const seen = Math.min(step * (Math.floor(j / step) + 1), S);
      const count = share(j, at.rule === 1 || at.rule === 2 ? seen : end);
      const height = (bar * Math.min(count, 1)).toFixed(1);
      paths.counts += `M${x + 8} ${base}v-${height}h${cell - 16}v${height}z`;
      if (count > 1) paths.counts += `M${x + 7} ${base - bar - 3}l6 -8l6 8z`;
      paths.should += `M${x + 2} ${(base - bar * Math.min(share(j, end), 1)).toFixed(1)}h${cell - 4}`;
    }
    for (const [name, d] of Object.entries(paths)) find(name).setAttribute("d", d);
    const m = highest(end);
    find("max").toggleAttribute("hidden", m === -Infinity);
    if (m > -Infinity) find("max").setAttribute("x", left + cell * (scores.indexOf(m) + 0.5));
  }

  function show() {
    const { name, scores, shown, once, traces } = data.queries[at.query];
    const step = data.sizes[at.size];
    const run = traces[at.rule][at.size];
    const ends = run.map((_, k) => Math.min(step * (k + 1), S));
    const keys = ends.map((end, k) => (end - step * k === 1 ? `${end}` : `${step * k + 1}–${end}`));
    const end = ends[at.tile];
    draw(scores.map((x) => x ?? -Infinity), step, end);
    root.querySelectorAll(".ac-score").forEach((node, j) => {
      node.textContent = shown[j];
      node.classList.toggle("ac-later", j >= end);
    });
    const before = at.tile ? [0, 3, 6].map((i) => run[at.tile - 1][i]) : data.empty;
    const [m, factor, added, total, ofSum, addedSum, weighted, output, same] = run[at.tile];
    const rule = data.rules[at.rule];
    const which = `key${end - step * at.tile > 1 ? "s" : ""} ${keys[at.tile]}`;
    find("live").textContent =
      `${name}, ${rule}, tile ${at.tile + 1} of ${run.length}, ${which}: maximum ${before[0]} → ${m}. ` +
      `Total ${before[1]} × ${factor} + ${added} = ${total}. ` +
      `Weighted sum ${before[2]} × ${ofSum} + ${addedSum} = ${weighted}. ` +
      `Output so far ${output}; a softmax of the keys read gives ${once[end - 1]}: ${same ? "" : "not "}the same.`;
    find("trace caption").textContent = `${name}, ${rule}, tiles of ${step}`;
    const cells = run.map((r, k) => [r[0], r[1], r[3], r[6], r[7], once[ends[k] - 1]]);
    find("trace tbody").replaceChildren(
      ...cells.map((row, k) =>
        el("tr", k === at.tile ? { class: "ac-on" } : {},
          el("th", { scope: "row" }, keys[k]), ...row.map((cell) => el("td", {}, cell)))),
    );
  }

  const tile = slider("Tile", items, (k) => {
    at.tile = k;
    show();
  });
  // Another size of tile keeps the keys that were read, or reads a few more.
  function cut(size) {
    const read = data.sizes[at.size] * (at.tile + 1);
    at.size = size;
    const n = Math.ceil(S / data.sizes[size]);
    items.splice(0, items.length, ...Array.from({ length: n }, (_, k) => `${k + 1} of ${n}`));
    tile.node.querySelector("input").max = n - 1;
    tile.choose(Math.min(n, Math.ceil(read / data.sizes[size])) - 1);
  }

  function add(name, label, texts, change) {
    const control = choices(label, texts, "ac-chips", change);
    if (texts.length > 1) find("controls").append(control.node);
    return control;
  }

  const set = (name) => (i) => {
    at[name] = i;
    show();
  };
  const groups = [
    add("query", "Query", data.queries.map((query) => query.name), set("query")),
    add("rule", "A new maximum", data.rules, set("rule")),
    add("size", "Tile size", data.sizes, cut),
  ];
  const moves = [["← Back", -1], ["Next →", 1]].map(([text, by]) => {
    const button = el("button", { type: "button" }, text);
    button.onclick = () => tile.choose(Math.min(items.length - 1, Math.max(0, at.tile + by)));
    return button;
  });
  find("controls").append(tile.node, el("p", { class: "ac-moves" }, ...moves));
  cut(at.size);
  ["query", "rule", "size"].forEach((name, n) => groups[n].choose(at[name]));
});
