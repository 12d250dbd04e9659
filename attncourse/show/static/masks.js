// The mask lab: pattern, parameters, layers and cell; grid and sentences follow. Every mask comes from Python.
attncourse.piece("masks", (root, data) => {
  const { el, choices, slider } = attncourse;
  const { T, cell, patterns } = data;
  const find = (selector) => root.querySelector(selector);
  const svg = find(".ac-grid svg");
  const facts = [...root.querySelectorAll(".ac-facts li")];
  const wanted = {};
  let pattern, mask, layers = 1, chosen = data.start.cell;

  // Layers until query i can depend on token j: 1 where it sees it, NaN where it never does.
  function distance(i, j) {
    if (pattern.causal && j > i) return NaN;
    return parseInt(mask[0][pattern.causal ? (i * (i + 1)) / 2 + j : i * T + j], 36);
  }

  const isReached = (n) => n <= layers && (n > 0 || layers > 1);

  function say(node, text) {
    if (node.textContent !== text) node.textContent = text;
    node.hidden = !text;
  }

  function draw() {
    const paths = ["", ""];
    for (let i = 0; i < T; i++) {
      for (let j = 0; j < T; j++) {
        const n = distance(i, j);
        if (!isReached(n)) continue;
        const side = n === 1 ? cell - 2 : n ? Math.max(4, cell - 3 - n) : 4;
        const edge = (cell - side) / 2;
        paths[+(n !== 1)] += `M${cell * j + edge} ${cell * i + edge}h${side}v${side}h-${side}z`;
      }
    }
    find(".ac-grid .ac-large").setAttribute("d", paths[0]);
    find(".ac-grid .ac-small").setAttribute("d", paths[1]);
    find(".ac-area").setAttribute("d", data.areas[+pattern.causal]);
  }

  function tell() {
    const [, pairs, most] = mask;
    const whole = pattern.causal ? (T * (T + 1)) / 2 : T * T;
    const far = distance(T - 1, 0);
    const count = [...Array(T).keys()].filter((j) => isReached(distance(T - 1, j))).length;
    let first = far === 1 ? "sees the first" : `can depend on the first after ${far} layers`;
    if (isNaN(far)) first = "can never depend on the first, however many layers there are";
    const reach = layers > 1 ? `After ${layers} layers the last token can depend on` : "In one layer the last token sees";
    [
      pattern.note,
      `Keys per query: ${(pairs / T).toFixed(2)} on average, ${most} at most.`,
      `Pairs: ${pairs} of ${whole}${pattern.causal ? " causal ones" : ""}, ${Math.round((100 * pairs) / whole)}\u00a0%.`,
      `The last token ${first}.`,
      `${reach} ${count} of ${T} tokens.`,
    ].forEach((text, n) => say(facts[n], text));
  }

  function point([i, j]) {
    find(".ac-of-query").setAttribute("transform", `translate(0 ${cell * i})`);
    find(".ac-of-key").setAttribute("transform", `translate(${cell * j} 0)`);
    find(".ac-chosen").setAttribute("x", cell * j);
    find(".ac-chosen").setAttribute("y", cell * i);
    const n = distance(i, j);
    const back = i - j;
    const where = back > 0 ? `key ${j}, ${back} back` : back ? `key ${j}, ${-back} ahead` : "itself";
    let text = `Query ${i} does not see ${where}, and no number of layers changes that.`;
    if (pattern.causal && back < 0) text = `Query ${i} does not see ${where}, and no causal layer does.`;
    if (n === 0) text = `Query ${i} does not see ${where}; the residual connection alone keeps it.`;
    if (n === 1) text = `Query ${i} sees ${where}.`;
    if (n > 1) text = `Query ${i} does not see ${where}, but can depend on it after ${n} layers.`;
    say(find("[role=status]"), text);
  }

  function show() {
    let index = 0;
    const named = pattern.parameters.map(([label, values, start]) => {
      const at = values.includes(wanted[label]) ? values.indexOf(wanted[label]) : start;
      index = index * values.length + at;
      return `${label} = ${values[at]}`;
    });
    mask = pattern.masks[index];
    say(find(".ac-now b"), [pattern.name, ...named].join(", "));
    draw();
    tell();
    point(chosen);
  }

  const sliders = el("div", { class: "ac-sliders" });
  const depth = slider("Layers", [...Array(data.layers).keys()].map((n) => `${n + 1}`), (i) => {
    layers = i + 1;
    if (pattern) show();
  });
  const group = choices("Pattern", patterns.map(({ name }) => name), "ac-chips", (k) => {
    pattern = patterns[k];
    const made = pattern.parameters.map(([label, values, start]) => {
      const control = slider(label, values, (i) => {
        wanted[label] = values[i];
        show();
      });
      return [control, values.includes(wanted[label]) ? values.indexOf(wanted[label]) : start];
    });
    sliders.replaceChildren(...made.map(([control]) => control.node), ...(data.layers > 1 ? [depth.node] : []));
    made.forEach(([control, at]) => control.choose(at));
    show();
  });
  depth.choose(0);
  if (patterns.length > 1) find(".ac-controls").append(group.node);
  find(".ac-controls").append(sliders);
  group.choose(data.start.pattern);

  // The grid: the mouse looks, a click or the arrow keys choose.
  const grid = find(".ac-grid");
  const label = "Grid of queries and keys. Arrow keys choose a cell; Home and End, the first and the last key.";
  Object.entries({ tabindex: 0, role: "application", "aria-label": label }).forEach(([k, v]) => grid.setAttribute(k, v));
  const inside = (n) => Math.min(T - 1, Math.max(0, n));

  function under(event) {
    const area = find(".ac-area");
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(area.getScreenCTM().inverse());
    return [inside(Math.floor(y / cell)), inside(Math.floor(x / cell))];
  }

  function choose(place) {
    chosen = place;
    point(chosen);
  }

  svg.addEventListener("pointermove", (event) => event.pointerType === "mouse" && point(under(event)));
  svg.addEventListener("pointerleave", () => point(chosen));
  svg.addEventListener("click", (event) => choose(under(event)));
  grid.addEventListener("keydown", (event) => {
    const [i, j] = chosen;
    const place = {
      ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
      Home: [i, 0], End: [i, T - 1],
    }[event.key];
    if (!place || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(place.map(inside));
  });
});
