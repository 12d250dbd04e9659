// A state that pairs are written into. Every number comes from Python.
attncourse.piece("memory", (root, data) => {
  const { slider, choices } = attncourse;
  const { letters, kinds, memories } = data;
  const [pair, left, row, bar] = data.size;
  const at = { ...data.start };
  const shades = [...root.querySelectorAll(".ac-shade")];
  const bars = [...letters].map((_, i) => root.querySelector(`.ac-pair-${i}`));
  const base = 20 + row * kinds.length + 48 + bar;

  function draw(memory) {
    const paths = Array(9).fill("");
    if (memory.states) {
      const step = (pair * letters.length) / memory.features;
      [...memory.states[at.pairs - 1]].forEach((level, place) => {
        if (level === "0") return;
        const x = left + (place % memory.features) * step;
        const y = 20 + row * Math.floor(place / memory.features);
        paths[level - 1] += `M${x.toFixed(2)} ${y}h${step.toFixed(2)}v${row}h-${step.toFixed(2)}z`;
      });
    }
    shades.forEach((node, i) => node.setAttribute("d", paths[i]));
    root.querySelector(".ac-none").toggleAttribute("hidden", !!memory.states);
  }

  function show() {
    const n = at.pairs;
    const memory = memories[at.memory];
    draw(memory);
    let right = 0;
    bars.forEach((node, i) => {
      const written = i < n;
      const height = written ? (bar * memory.shares[n - 1][i]) / 100 : 0;
      const read = written ? kinds[memory.read[n - 1][i]] : "";
      right += read === letters[i];
      node.classList.toggle("ac-later", !written);
      node.children[0].setAttribute("y", base - height);
      node.children[0].setAttribute("height", height);
      node.children[2].textContent = read && read === letters[i] ? "✓" : read;
    });
    const M = memory.features;
    const V = kinds.length;
    const stored = M ? `State: ${M} × ${V} + ${M} = ${M * (V + 1)} numbers` : `Stored: ${n} keys and ${n} values`;
    const mean = memory.means[n - 1].toFixed(2);
    const pairs = n === 1 ? "1 pair" : `${n} pairs`;
    const said = `${memory.name}: ${pairs} written, ${right} read back right. Mean share ${mean}. ${stored}.`;
    root.querySelector(".ac-live").textContent = said;
  }

  function add(make, name, label, items, first, ...kind) {
    if (items.length < 2) return;
    const control = make(label, items, ...kind, (i) => {
      at[name] = i + first;
      show();
    });
    root.querySelector(".ac-controls").append(control.node);
    control.choose(at[name] - first);
  }

  add(choices, "memory", "Memory", memories.map((memory) => memory.name), 0, "ac-chips");
  add(slider, "pairs", "Pairs written", [...letters].map((_, i) => i + 1), 1);
});
