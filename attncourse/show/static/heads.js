// The gallery of heads: layer, head and query; the text and the heatmap follow.
attncourse.piece("heads", (root, data) => {
  const { el, choices, slider } = attncourse;
  const { tokens, heads, dot } = data;
  const shades = data.weights.map((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
  const cells = [...root.querySelectorAll(".ac-text g")];
  const map = root.querySelector(".ac-dots");
  const paths = [...map.querySelectorAll(".ac-shades path")];
  const frame = map.querySelector(".ac-frame");
  const status = root.querySelector("[role=status]");
  const back = (n) => (n ? `${n} back` : "itself");
  let [layer, head, query] = data.start;

  function paint() {
    const all = shades[layer * heads + head];
    const row = all.subarray((query * (query + 1)) / 2, ((query + 1) * (query + 2)) / 2);
    cells.forEach((cell, j) => {
      const weight = (j <= query ? row[j] : 0) / 255;
      cell.classList.toggle("ac-on", j === query);
      cell.firstChild.setAttribute("fill-opacity", weight.toFixed(2));
      cell.lastChild.setAttribute("class", `ac-t${(weight >= 0.54) + (weight >= 0.71)}`);
    });
    frame.setAttribute("y", query);
    frame.setAttribute("width", query + 1);
    const said = [...row.keys()]
      .filter((j) => (row[j] / 255).toFixed(2) > 0)
      .sort((a, b) => row[b] - row[a] || b - a)
      .slice(0, 3)
      .map((j) => `${(row[j] / 255).toFixed(2)} on «${tokens[j]}» ${back(query - j)}`);
    const name = data.names[layer * heads + head];
    const who = `Layer ${layer}, head ${head}${name ? ` (${name})` : ""}`;
    status.textContent = `${who}, token ${query + 1}, «${tokens[query]}»: ${said.join(", ") || "no weight above 0.00"}`;
  }

  function repaint() {
    const d = Array(paths.length + 1).fill("");
    let n = 0;
    for (let i = 0; i < tokens.length; i++) {
      for (let j = 0; j <= i; j++) {
        const shade = shades[layer * heads + head][n++];
        d[Math.floor((2 * shade * paths.length + 255) / 510)] += `M${j} ${i}h1v1h-1z`;
      }
    }
    paths.forEach((path, level) => path.setAttribute("d", d[level + 1]));
    paint();
  }

  const numbers = (n) => [...Array(n).keys()].map(String);
  const layers = choices("Layer", numbers(data.layers), "ac-chips", (i) => ((layer = i), repaint()));
  const chosen = choices("Head", numbers(heads), "ac-chips", (i) => ((head = i), repaint()));
  const items = tokens.map((token, i) => `${i + 1} of ${tokens.length}, «${token}»`);
  const move = slider("Query", items, (i) => ((query = i), paint()));
  root.querySelector(".ac-controls").append(layers.node, chosen.node, move.node);
  cells.forEach((cell, j) => (cell.onclick = () => move.choose(j)));
  map.addEventListener("click", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
    const i = Math.floor((point.y - 16) / dot);
    if (i >= 0 && i < tokens.length) move.choose(i);
  });
  const [, , first] = data.start;
  layers.choose(layer);
  chosen.choose(head);
  move.choose(first);
});
