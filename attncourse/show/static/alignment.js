// Attention weights, one query at a time.
attncourse.piece("alignment", (root, data) => {
  const { el, live, select, choices } = attncourse;
  const maps = [...root.querySelectorAll(".ac-map")];
  const tables = [...root.querySelectorAll("details > .ac-scroll")];
  const words = el("div");
  const bars = el("ol", { class: "ac-bars" });
  const status = live();

  function show(example, i) {
    const weights = example.weights[i];
    const map = maps[data.examples.indexOf(example)];
    map.querySelectorAll(".ac-row").forEach((row, n) => row.classList.toggle("ac-on", n === i));
    bars.replaceChildren(
      ...example.source.map((word, j) => {
        const bar = el("span", { class: "ac-bar" }, el("span", { style: `height:${weights[j] * 100}%` }));
        return el("li", {}, el("span", { class: "ac-word" }, word), " ", bar, el("span", {}, weights[j].toFixed(2)));
      }),
    );
    const top = [...weights.keys()]
      .filter((j) => weights[j].toFixed(2) > 0)
      .sort((a, b) => weights[b] - weights[a])
      .slice(0, 3)
      .map((j) => `${weights[j].toFixed(2)} on «${example.source[j]}»`);
    const where = `${data.query_label} ${i + 1} of ${example.target.length}, «${example.target[i]}»`;
    status.textContent = `${where}: ${top.join(", ") || `no ${data.quantity} on any ${data.key_label}`}`;
  }

  function open(k) {
    const example = data.examples[k];
    [maps, tables].forEach((nodes) => nodes.forEach((node, n) => (node.hidden = n !== k)));
    const keys = el("span", { class: "ac-keyboard" }, " (arrow keys, Home, End)");
    const hint = el("span", { class: "ac-dim" }, `Choose the ${data.query_label}`, keys);
    const group = choices(hint, example.target, "ac-chips", (i) => show(example, i));
    words.replaceChildren(group.node);
    maps[k].querySelectorAll(".ac-row").forEach((row, i) => (row.onclick = () => group.choose(i)));
    group.choose(0);
  }

  if (data.examples.length > 1) {
    const titles = data.examples.map((example) => example.title);
    root.querySelector(".ac-controls").append(select("Example:", titles, open));
    root.querySelectorAll(".ac-map > p").forEach((title) => title.remove());
  }
  const label = el("p", { class: "ac-dim" }, `${data.quantity[0].toUpperCase()}${data.quantity.slice(1)} on each ${data.key_label}`);
  root.querySelector(".ac-controls").append(words, status, label, bars);
  open(0);
});
