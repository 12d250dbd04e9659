// A query and a key turned by their positions. Every number comes from Python.
attncourse.piece("rotation", (root, data) => {
  const { slider, choices } = attncourse;
  const { turns, unit, x, y } = data;
  const at = { ...data.start };
  const find = (selector) => root.querySelector(selector);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const text = (value) => value.toFixed(2).replace("-", "−");

  function point(group, [a, b], outside) {
    const length = Math.max(Math.hypot(a, b), 1e-9);
    const out = (outside || length * unit + 9) / length;
    const [shaft, tip, letter] = group.children;
    shaft.setAttribute("d", `M0 0L${a * unit} ${-b * unit}`);
    tip.setAttribute("cx", a * unit);
    tip.setAttribute("cy", -b * unit);
    letter.setAttribute("x", a * out);
    letter.setAttribute("y", 4.5 - b * out);
  }

  function show() {
    const { turn, distance, shift } = at;
    const chosen = turns[turn];
    const scores = chosen.scores[shift];
    all(".ac-pairs > div").forEach((cell, p) => {
      point(cell.querySelector(".ac-query"), chosen.query[shift + distance][p]);
      point(cell.querySelector(".ac-key"), chosen.key[shift][p], 55);
      cell.querySelector(".ac-which").textContent = `numbers ${chosen.pairs[p].join(", ")}`;
      cell.querySelector(".ac-rate").textContent = `${chosen.rates[p]} rad a position`;
      cell.querySelector(".ac-adds").textContent = text(chosen.shares[shift][distance][p]);
    });
    const height = (score) => y[0] - y[1] * score;
    find(".ac-scored").setAttribute("d", "M" + scores.map((score, d) => `${x[d]} ${height(score)}`).join("L"));
    find(".ac-here").setAttribute("cx", x[distance]);
    find(".ac-here").setAttribute("cy", height(scores[distance]));
    const where = `query at position ${shift + distance}, key at ${shift}, distance ${distance}`;
    const again = shift ? `; before both moved on it was ${text(chosen.scores[0][distance])}` : "";
    find(".ac-live").textContent = `${chosen.name}: ${where}. Score ${text(scores[distance])}${again}.`;
  }

  function add(make, name, label, items, ...kind) {
    if (items.length < 2) return;
    const control = make(label, items, ...kind, (i) => {
      at[name] = i;
      show();
    });
    find(".ac-controls").append(control.node);
    control.choose(at[name]);
  }

  add(choices, "turn", "Turned with", turns.map((turn) => turn.name), "ac-chips");
  add(slider, "distance", "Distance", [...x.keys()]);
  add(slider, "shift", "Shift of both", [...turns[0].key.keys()]);
});
