// One self-attention layer, a step at a time. Every number and sentence comes from Python.
attncourse.piece("steps", (root, data) => {
  const { el, choices } = attncourse;
  const mats = [...root.querySelectorAll(".ac-mat")];
  const at = {};

  function show() {
    const run = data.runs[at.run];
    mats.forEach((mat, n) => {
      const now = data.at[n] === at.step;
      mat.hidden = data.at[n] > at.step;
      mat.classList.toggle("ac-on", now);
      mat.querySelectorAll("tbody tr").forEach((row, i) => {
        row.classList.toggle("ac-on", i === at.token && (now || data.own[n]));
        row.querySelectorAll("td").forEach((cell, j) => (cell.textContent = run.cells[n][i][j]));
      });
    });
    root.querySelector(".ac-live").textContent = run.said[at.step][at.token];
  }

  function add(name, label, items) {
    at[name] = 0;
    const group = choices(label, items, "ac-chips", (i) => {
      at[name] = i;
      show();
    });
    if (items.length > 1) root.querySelector(".ac-controls").append(group.node);
    group.choose(0);
    return group;
  }

  Object.assign(at, { step: 0, token: 0, run: 0 });
  const keys = el("span", { class: "ac-keyboard" }, " (arrow keys, Home, End)");
  const step = add("step", el("span", {}, "Step", keys), data.steps);
  const move = (by) => step.choose(Math.min(data.steps.length - 1, Math.max(0, at.step + by)));
  const buttons = [["← Back", -1], ["Next →", 1]].map(([text, by]) => {
    const button = el("button", { type: "button" }, text);
    button.onclick = () => move(by);
    return button;
  });
  root.querySelector(".ac-controls").append(el("p", { class: "ac-moves" }, ...buttons));
  add("token", "Who asks", data.tokens);
  add("run", "Scores are", data.runs.map((run) => run.name));
});
