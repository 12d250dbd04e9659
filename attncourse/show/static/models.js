// Caches of published models. Every number and every line comes from Python.
attncourse.piece("models", (root, data) => {
  const { el, id, slider } = attncourse;
  const { x, models } = data;
  const at = { tokens: data.start.tokens, chosen: data.badges.map((_, slot) => data.start.chosen[slot] ?? null) };
  const lines = [...root.querySelectorAll(".ac-model")];
  const badges = [...root.querySelectorAll(".ac-badge")];
  const said = root.querySelector(".ac-live");
  const heading = el("summary", {});
  const boxes = models.map(() => el("input", { type: "checkbox", id: id() }));

  function show() {
    const items = [];
    lines.forEach((line) => line.setAttribute("class", "ac-model"));
    at.chosen.forEach((index, slot) => {
      badges[slot].toggleAttribute("hidden", index === null);
      if (index === null) return;
      const { name, kind, gib, y, below } = models[index];
      const knot = data.badges[slot];
      const [dot, circle, letter] = badges[slot].children;
      lines[index].classList.add(`ac-slot-${slot}`);
      [dot, circle].forEach((node, i) => {
        node.setAttribute("cx", x[i ? knot : at.tokens]);
        node.setAttribute("cy", y[i ? knot : at.tokens]);
      });
      letter.setAttribute("y", y[knot] + 4);
      const card = data.cards[below[at.tokens]];
      const where = card ? `below the line of ${card[0]}` : "above every line";
      items.push(el("li", {}, el("b", {}, letter.textContent), ` ${name}, ${kind}: ${gib[at.tokens]} GiB, ${where}`));
    });
    const here = root.querySelector(".ac-here");
    here.setAttribute("d", here.getAttribute("d").replace(/^M[\d.]+/, `M${x[at.tokens]}`));
    said.replaceChildren(el("p", {}, `At ${data.tokens[at.tokens]} tokens:`), el("ul", {}, ...items));
    const full = !at.chosen.includes(null);
    boxes.forEach((box, i) => {
      box.checked = at.chosen.includes(i);
      box.disabled = full && !box.checked;
    });
    heading.textContent = `Choose models (${items.length} of ${models.length}, at most ${badges.length})`;
  }

  boxes.forEach((box, i) =>
    box.addEventListener("change", () => {
      at.chosen[at.chosen.indexOf(box.checked ? null : i)] = box.checked ? i : null;
      show();
    }),
  );
  const names = models.map(({ name }, i) => el("label", { for: boxes[i].id }, boxes[i], name));
  const list = el("fieldset", {}, el("legend", {}, "Models"), el("div", { class: "ac-names" }, ...names));
  const context = slider("Context", data.tokens, (i) => {
    at.tokens = i;
    show();
  });
  root.querySelector(".ac-controls").append(context.node, el("details", {}, heading, list));
  context.choose(at.tokens);
});
