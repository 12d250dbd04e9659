// One query against a few keys in the plane, under several scores. Every number comes from Python.
attncourse.piece("scores", (root, data) => {
  const { slider, choices } = attncourse;
  const { keys, scores, degrees, lengths, temperatures, unit } = data;
  const at = { ...data.start };
  const find = (selector) => root.querySelector(selector);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const arrow = find(".ac-query");
  const text = (value) => value.toFixed(2).replace("-", "−");
  const weights = (score) => score.weights[at.temperature][at.length][at.angle];

  // The largest weight as it is shown, and the keys that have it.
  function most(score) {
    const row = weights(score);
    const top = Math.max(...row);
    return `${text(top)} on ${keys.filter((_, j) => row[j] === top).join(" and ")}`;
  }

  function show() {
    const chosen = scores[at.score];
    const tip = lengths[at.length] * unit;
    const angle = (degrees[at.angle] * Math.PI) / 180;
    arrow.setAttribute("transform", `rotate(${-degrees[at.angle]})`);
    arrow.firstChild.setAttribute("d", `M0 0H${tip - 5}`);
    arrow.lastChild.setAttribute("transform", `translate(${tip})`);
    find(".ac-query + text").setAttribute("x", (tip + 12) * Math.cos(angle));
    find(".ac-query + text").setAttribute("y", 4.5 - (tip + 12) * Math.sin(angle));
    const row = weights(chosen);
    const score = chosen.scores[at.length][at.angle];
    all(".ac-halo").forEach((halo, j) => halo.setAttribute("stroke-width", 24 * row[j]));
    all(".ac-now tbody tr").forEach((line, j) => {
      line.children[1].textContent = text(score[j]);
      line.querySelector(".ac-share span").style.width = `${100 * row[j]}%`;
      line.lastChild.lastChild.textContent = text(row[j]);
    });
    const query = `query at ${degrees[at.angle]}°, length ${lengths[at.length]}`;
    const where = `${chosen.name}, ${query}, temperature ${temperatures[at.temperature]}`;
    find(".ac-live").textContent = `${where}: largest weight ${most(chosen)}.`;
    const others = scores.filter((other) => other !== chosen).map((other) => `${other.name} ${most(other)}`);
    if (others[0]) find(".ac-others").textContent = `Largest with the same query: ${others.join("; ")}.`;
  }

  function add(make, name, label, items, ...kind) {
    if (items.length < 2) return;
    const control = make(label, items, ...kind, (i) => {
      at[name] = i;
      show();
    });
    find(".ac-controls").append(control.node);
    control.choose(at[name]);
    return control;
  }

  add(choices, "score", "Score", scores.map((score) => score.name), "ac-chips");
  const turn = add(slider, "angle", "Direction of q", degrees.map((degree) => `${degree}°`));
  add(choices, "length", "Length of q", lengths, "ac-chips");
  add(choices, "temperature", "Temperature", temperatures, "ac-chips");
  find(".ac-plane").onclick = (event) => {
    const box = find(".ac-plane").getBoundingClientRect();
    const x = event.clientX - box.left - box.width / 2;
    const y = box.top + box.height / 2 - event.clientY;
    const n = degrees.length;
    turn.choose(Math.round((Math.atan2(y, x) / (2 * Math.PI)) * n + n) % n);
  };
});
