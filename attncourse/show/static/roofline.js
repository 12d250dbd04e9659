// The roofline: calls under the ceilings of a machine. Every number and place comes from Python.
attncourse.piece("roofline", (root, data) => {
  const { el, slider, choices, select } = attncourse;
  const at = [...data.start];
  const marks = [...root.querySelectorAll(".ac-prefill, .ac-step")];
  const roofs = [...root.querySelectorAll(".ac-roof")];
  const said = root.querySelector(".ac-live");
  const kinds = ["prefill", "step"];

  // A square for a prefill, a circle for a step.
  function mark(kind, x, y, size) {
    if (!kind) return `M${x - size} ${y - size}h${2 * size}v${2 * size}h${-2 * size}z`;
    const half = `a${size} ${size} 0 1 0`;
    return `M${x - size} ${y}${half} ${2 * size} 0${half} ${-2 * size} 0z`;
  }

  function show() {
    const [machine, tokens, batch, mechanism] = at;
    const { name, about, calls: all } = data.machines[machine];
    const calls = all[tokens][batch];
    const lines = kinds.map((kind, k) => {
      const [x, y, flop, moved, intensity, compute, least, took, low] = calls[mechanism][k];
      const each = (draw) => calls.map((pair) => draw(pair[k])).join("");
      const paths = [
        each((call) => mark(k, call[0], call[1], 2)),
        each((call) => (call[7] ? mark(k, call[0], call[8], 1.5) : "")),
        mark(k, x, y, 5),
        took ? `M${x} ${y}V${low}${mark(k, x, low, 4)}` : "",
      ];
      paths.forEach((path, i) => marks[paths.length * k + i].setAttribute("d", path));
      const binds = `${compute ? "Compute" : "Traffic"} binds: at least ${least}${took ? `; measured ${took}` : ""}`;
      return `${data.names[mechanism]}, ${kind}: ${flop}, ${moved}, ${intensity} FLOP a byte. ${binds}`;
    });
    roofs.forEach((roof, i) => roof.classList.toggle("ac-here", i === machine));
    const [prefills, steps] = kinds.map((_, k) => calls.filter((pair) => !pair[k][5]).length);
    const where = `${data.tokens[tokens]} tokens, batch ${data.batches[batch]}`;
    lines.push(`${where}: traffic binds ${prefills} of ${calls.length} prefills and ${steps} of ${calls.length} steps`);
    const items = lines.map((line) => el("li", {}, line));
    said.replaceChildren(el("p", {}, `${name}: ${about}.`), el("ul", {}, ...items));
  }

  const change = (place) => (i) => {
    at[place] = i;
    show();
  };
  const machine = choices("Machine", data.machines.map(({ name }) => name), "ac-chips", change(0));
  const tokens = slider("Tokens", data.tokens, change(1));
  const batch = choices("Batch", data.batches, "ac-chips", change(2));
  const mechanism = select("Mechanism", data.names, change(3));
  root.querySelector(".ac-controls").append(mechanism, tokens.node, batch.node, machine.node);
  const [first, second, third, fourth] = data.start;
  mechanism.querySelector("select").selectedIndex = fourth;
  machine.choose(first);
  batch.choose(third);
  tokens.choose(second);
});
